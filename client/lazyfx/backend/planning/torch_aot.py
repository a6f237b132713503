"""Private names of torch's AOTAutograd that the backend uses; imported only here.

Imports in functions: they take seconds, and most jobs need none of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, Final, TypeAlias

import torch
from torch.fx import GraphModule

__all__ = ["CompilePart", "trace_as_eager", "trace_as_inductor", "without_autocast"]

CompilePart: TypeAlias = Callable[[GraphModule, Sequence[Any]], Callable[[list[Any]], Any]]
"""Takes a graph of AOTAutograd and its fake inputs; returns a function of a list of inputs."""

# torch's cache would return code that was compiled here, and keep ours under the same key. Both
# graphs are needed now.
_SETTINGS: Final[Mapping[str, Any]] = {
    "enable_autograd_cache": False,
    "force_non_lazy_backward_lowering": True,
}


def trace_as_inductor(
    module: GraphModule,
    inputs: Sequence[Any],
    compile_part: CompilePart,
    settings: Mapping[str, Any],
) -> Callable[..., Any]:
    """Trace as Inductor does: its decompositions, joint graph passes and partitioner.

    Random numbers stay operators of torch's, which the server's Inductor replaces by its own in
    the same order: those exist only where Inductor has been imported.

    Args:
        module: Consumed.
        inputs: What dynamo gives to a backend.
        compile_part: Called with each graph that Inductor would lower.
        settings: Settings of Inductor.

    Returns:
        A function of the graph's inputs.
    """
    from torch._inductor.compile_fx import compile_fx
    from torch._inductor.fx_passes import joint_graph

    def inner(part: GraphModule, fakes: Sequence[Any], **_: Any) -> Any:
        return compile_part(part, fakes)

    with _tracing(), _replaced(joint_graph, "replace_random_passes", lambda *_: 0):
        traced: Any = compile_fx(
            module, list(inputs), inner_compile=inner, config_patches=dict(settings)
        )
    return traced  # type: ignore[no-any-return]


def trace_as_eager(
    module: GraphModule, inputs: Sequence[Any], compile_part: CompilePart
) -> Callable[..., Any]:
    """Trace into the operators that eager torch runs, with torch's own partitioner.

    Args:
        module: Consumed.
        inputs: What dynamo gives to a backend.
        compile_part: Called with the forward and, with gradients, the backward graph.

    Returns:
        A function of the graph's inputs.
    """
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.partitioners import min_cut_rematerialization_partition

    backend = aot_autograd(
        fw_compiler=compile_part,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )
    with _tracing():
        traced: Callable[..., Any] = backend(module, list(inputs))
    return traced


@contextmanager
def _tracing() -> Iterator[None]:
    """Make AOTAutograd trace for a compiler that is not here.

    No saved tensors are donated to the backward: torch then refuses `retain_graph=True`, and it
    decides only at the first backward whether that is needed, when the server has long compiled it.
    """
    from torch._functorch import config
    from torch._functorch._aot_autograd import graph_compile

    none_donated = _replaced(graph_compile, "collect_bw_donated_buffer_idxs", lambda *_, **__: [])
    with config.patch(dict(_SETTINGS)), none_donated:
        yield


@contextmanager
def _replaced(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Replace a function of torch within the block; dynamo compiles one graph at a time."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def without_autocast() -> Any:
    """A context without autocast on any device."""
    return torch._C._DisableAutocast()  # noqa: SLF001
