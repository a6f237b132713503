"""Settings of Inductor: which of them travel, and a digest of all the others.

A server compiles with its own process's defaults plus the settings that it was sent. Only
those listed here are taken: others run programs, write files or hold functions. The digest of
the whole configuration shows any that differs in another way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from lazyfx.errors import LazyfxError
from lazyfx.native import named_values, torch_names
from lazyfx.v1 import compiler_pb2 as pb

TAKEN: Final = frozenset(
    {
        "batch_invariant",
        "benchmark_fusion",
        "combo_kernels",
        "comprehensive_padding",
        "conv_1x1_as_mm",
        "coordinate_descent_tuning",
        "cpp.dynamic_threads",
        "cpp.enable_floating_point_contract_flag",
        "cpp.enable_loop_tail_vec",
        "cpp.enable_tiling_heuristics",
        "cpp.enable_unsafe_math_opt_flag",
        "cpp.max_horizontal_fusion_size",
        "cpp.min_chunk_size",
        "cpp.simdlen",
        "cpp.use_decompose_tanh",
        "cpp.weight_prepack",
        "deterministic",
        "emulate_precision_casts",
        "epilogue_fusion",
        "fallback_random",
        "force_layout_optimization",
        "inplace_buffers",
        "keep_output_stride",
        "layout_optimization",
        "loop_ordering_after_fusion",
        "max_autotune",
        "max_autotune_gemm",
        "max_autotune_pointwise",
        "max_fusion_size",
        "memory_planning",
        "nan_asserts",
        "pattern_matcher",
        "permute_fusion",
        "realize_opcount_threshold",
        "realize_reads_threshold",
        "reorder_for_locality",
        "reorder_for_peak_memory",
        "shape_padding",
        "size_asserts",
        "split_reductions",
        "triton.coalesce_tiling_analysis",
        "triton.cooperative_reductions",
        "triton.max_tiles",
        "triton.multi_kernel",
        "triton.persistent_reductions",
        "unroll_reductions_threshold",
        "use_fast_math",
    }
)
# Settings of a machine, not of a result: paths, caches, logs and worker processes.
_OWN: Final = ("cxx", "cache", "worker", "quiesce", "log", "progress", "dir", "path", "cacheable")


def requested(
    mode: str | None, given: Mapping[str, Any], device_types: Iterable[str] = ()
) -> dict[str, bool | int | float | str]:
    """The settings of one torch.compile call: those of its mode, then its own.

    Args:
        mode: Of torch.compile.
        given: Settings of Inductor.
        device_types: Types of the graph's devices; CUDA graphs say nothing about others.

    Raises:
        LazyfxError: A setting is not one that travels; names it.
    """
    wanted: dict[str, Any] = {}
    if mode:
        try:
            wanted.update(torch_names.mode_settings(mode))
        except RuntimeError as error:
            raise LazyfxError(str(error)) from error
    wanted.update(given)
    if "cuda" not in device_types:
        wanted.pop("triton.cudagraphs", None)
    defaults = torch_names.inductor_config.get_config_copy()
    for name, value in wanted.items():
        if name not in TAKEN or not isinstance(value, (bool, int, float, str)):
            raise LazyfxError(
                f"the Inductor setting {name}={value!r} is not one that a server takes; "
                "docs/training.md lists them"
            )
        if name not in defaults:
            raise LazyfxError(f"this torch has no Inductor setting {name!r}")
    # What is set in this process and travels need not be said again in options.
    for name in sorted(TAKEN & defaults.keys()):
        if name not in wanted and isinstance(defaults[name], (bool, int, float, str)):
            default = torch_names.default_setting(name)
            if defaults[name] != default:
                wanted[name] = defaults[name]
    return wanted


def to_proto(settings: Mapping[str, Any]) -> list[pb.PassOption]:
    """Settings as a request holds them, sorted by name."""
    return named_values.to_messages(settings)


def from_proto(options: Iterable[pb.PassOption]) -> dict[str, Any]:
    """Settings of a request.

    Raises:
        LazyfxError: One is not taken; names it.
    """
    found = named_values.from_messages(options, "settings")
    for name in found:
        if name not in TAKEN:
            raise LazyfxError(f"settings: {name[:100]!r} is not one that this server takes")
    return found


@contextmanager
def applied(settings: Mapping[str, Any]) -> Iterator[None]:
    """Settings in place within the block."""
    with torch_names.inductor_config.patch(dict(settings)):
        yield


def configuration_digest() -> bytes:
    """SHA-256 of every setting that can change a result, as they are now."""
    digest = hashlib.sha256()
    for name, value in sorted(torch_names.portable_configuration().items()):
        if not any(part in name for part in _OWN):
            digest.update(f"{name}={value!r}\0".encode())
    return digest.digest()
