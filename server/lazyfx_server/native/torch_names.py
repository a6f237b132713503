"""Names of torch's Inductor that only a server needs, imported here and nowhere else."""

# ruff: noqa: SLF001 - that is what this file is for

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch._guards import TracingContext, tracing
from torch._inductor import codecache, standalone_compile
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.native.torch_names import functorch_config, inductor_config

_PARAMETERS = inspect.signature(standalone_compile).parameters

# Calls in graphs that torch will not write into an artifact unless told that it may.
_AUTOCAST = {
    "torch.amp.autocast_mode._enter_autocast": "1",
    "torch.amp.autocast_mode._exit_autocast": "1",
}


def keep_headers_in(folder: Path) -> None:
    """Keep precompiled headers in a folder of one's own; torch shares them by user."""
    codecache._HEADER_DIR = str(folder)
    codecache._HEADER_LOCK_DIR = str(folder / "locks")


def compile_ahead(
    module: GraphModule,
    inputs: Sequence[Any],
    mode: FakeTensorMode,
    patches: Mapping[str, Any],
) -> bytes | None:
    """Compile forward and, with gradients, backward; return torch's bytes of both.

    Args:
        module: Is used up.
        inputs: Fake, of `mode`.
        mode: With a ShapeEnv.
        patches: Settings of Inductor.

    Returns:
        None when torch cannot write the artifact.
    """
    settings = {"unsafe_marked_cacheable_functions": _AUTOCAST, **patches}
    given: dict[str, Any] = {"dynamic_shapes": "from_example_inputs", "aot": True}
    with inductor_config.patch(settings):
        if "fake_mode" in _PARAMETERS:
            artifact: Any = standalone_compile(
                module, list(inputs), fake_mode=mode, donate_graph_module=True, **given
            )
        else:
            artifact = _compile_before_2_12(module, inputs, mode)
        # What torch would not put into its cache has nothing to be written.
        if getattr(artifact.inner_fn, "serialize", None) is None:
            return None
        data: bytes = artifact.serialize()
        return data


def _compile_before_2_12(module: GraphModule, inputs: Sequence[Any], mode: FakeTensorMode) -> Any:
    """The same where standalone_compile takes no mode and leaves the backward for later."""
    with (
        tracing(TracingContext(mode)),
        functorch_config.patch(force_non_lazy_backward_lowering=True),
    ):
        return standalone_compile(
            module, list(inputs), dynamic_shapes="from_tracing_context", aot=True
        )


def fresh_fake_mode() -> FakeTensorMode:
    """A mode with a ShapeEnv of its own."""
    return FakeTensorMode(shape_env=ShapeEnv())
