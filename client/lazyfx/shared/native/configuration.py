"""Digests of all settings of Inductor and AOTAutograd: equal digests mean equal results.

Values that torch itself changes at run time, and those that describe a machine but do not affect
results, are excluded.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from lazyfx.shared.native import torch_inductor
from lazyfx.shared.printable import shown

_SHORT: Final = 4

# Written by torch while it compiles: the last compile, and facts about this machine.
_RUN_TIME: Final = frozenset(
    {
        "inductor.aot_inductor.metadata",
        "inductor.aot_inductor.serialized_in_spec",
        "inductor.aot_inductor.serialized_out_spec",
        "inductor.compile_threads",
        "inductor.cpp.vec_isa_ok",
        "inductor.rocm.ck_dir",
        "inductor.worker_start_method",
    }
)
# Caches, folders, logs and worker processes; the compilers of a machine.
_MACHINE: Final = frozenset(
    {
        "aot.autograd_cache_allow_custom_autograd_functions",
        "aot.autograd_cache_normalize_inputs",
        "aot.bundled_autograd_cache",
        "aot.bypass_autograd_cache_key",
        "aot.enable_autograd_cache",
        "aot.enable_remote_autograd_cache",
        "aot.force_autograd_cache",
        "aot.memory_budget_pareto_dir",
        "aot.strict_autograd_cache",
        "aot.visualize_memory_budget_pareto",
        "inductor.aot_inductor.aoti_shim_library_path",
        "inductor.aot_inductor.output_path",
        "inductor.aten_distributed_optimizations.log_final_collectives_estimations",
        "inductor.autoheuristic_log_path",
        "inductor.bundle_triton_into_fx_graph_cache",
        "inductor.bundled_autotune_remote_cache",
        "inductor.compile_worker_wait_timeout",
        "inductor.cpp.cxx",
        "inductor.cpp_cache_precompile_headers",
        "inductor.cuda.binary_remote_cache_force_write",
        "inductor.cuda.cuda_cxx",
        "inductor.cuda.upload_to_binary_remote_cache",
        "inductor.cuda.use_binary_remote_cache",
        "inductor.cutlass.binary_remote_cache_force_write",
        "inductor.cutlass.upload_to_binary_remote_cache",
        "inductor.cutlass.use_binary_remote_cache",
        "inductor.disable_progress",
        "inductor.file_lock_timeout",
        "inductor.global_cache_dir",
        "inductor.log_tlparse",
        "inductor.non_blocking_remote_cache_write",
        "inductor.quiesce_async_compile_pool",
        "inductor.quiesce_async_compile_time",
        "inductor.remote_gemm_autotune_cache",
        "inductor.rocm.rocm_home",
        "inductor.search_autotune_cache",
        "inductor.torchinductor_worker_logpath",
        "inductor.triton.proton_output_dir",
        "inductor.unsafe_marked_cacheable_functions",
        "inductor.unsafe_skip_cache_dynamic_shape_guards",
        "inductor.verbose_progress",
        "inductor.worker_log_path",
        "inductor.worker_suppress_logging",
        "inductor.xpu.binary_remote_cache_force_write",
        "inductor.xpu.oneapi_root",
        "inductor.xpu.upload_to_binary_remote_cache",
        "inductor.xpu.use_binary_remote_cache",
    }
)
_LEFT_OUT: Final = _RUN_TIME | _MACHINE


@dataclass(frozen=True)
class Configuration:
    """The current values of all settings that can change a result.

    Attributes:
        values: Values by name ("inductor.max_autotune"), sorted by name.
    """

    values: Mapping[str, Any]

    @property
    def digest(self) -> bytes:
        """SHA-256 of all values."""
        return hashlib.sha256(b"".join(self._digests())).digest()

    @property
    def short_digests(self) -> bytes:
        """The first 4 bytes of the digest of each setting."""
        return b"".join(digest[:_SHORT] for digest in self._digests())

    def differences(self, short_digests: bytes) -> Sequence[str]:
        """The settings that differ from those of another process with the same torch.

        Args:
            short_digests: The other process's digests.

        Returns:
            Each as "name (value here)"; empty if there are none.
        """
        if len(short_digests) != _SHORT * len(self.values):
            return ()
        theirs = [short_digests[i : i + _SHORT] for i in range(0, len(short_digests), _SHORT)]
        rows = zip(self.values.items(), self._digests(), theirs, strict=True)
        return tuple(
            f"{name} ({shown(value)} here)"
            for (name, value), own, other in rows
            if own[:_SHORT] != other
        )

    def _digests(self) -> Iterator[bytes]:
        for name, value in self.values.items():
            yield hashlib.sha256(f"{name}={_canonical_text(value)}".encode()).digest()


def read_configuration() -> Configuration:
    """Read the configuration of this process."""
    found = torch_inductor.portable_configuration()
    return Configuration({name: found[name] for name in sorted(found) if name not in _LEFT_OUT})


def _canonical_text(value: Any) -> str:
    """A value as text that is the same in every process."""
    if isinstance(value, Mapping):
        entries = sorted(f"{_canonical_text(k)}: {_canonical_text(v)}" for k, v in value.items())
        return f"{{{', '.join(entries)}}}"
    if isinstance(value, (list, tuple)):
        return f"{type(value).__name__}({', '.join(map(_canonical_text, value))})"
    if isinstance(value, (set, frozenset)):
        return f"set({', '.join(sorted(map(_canonical_text, value)))})"
    if callable(value):
        named = getattr(value, "__qualname__", type(value).__qualname__)
        return f"{getattr(value, '__module__', '')}.{named}"
    return repr(value)
