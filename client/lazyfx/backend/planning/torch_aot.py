"""Private names of torch's AOTAutograd that the backend uses; imported only here.

Imports in functions: they take seconds, and most jobs need none of them.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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

_one_trace: Final = threading.RLock()


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

    def inner(part: GraphModule, fakes: Sequence[Any], **_: Any) -> Any:
        _donate_nothing()
        return compile_part(part, fakes)

    with _tracing(), _keeping_random_operators():
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

    def inner(part: GraphModule, fakes: Sequence[Any]) -> Any:
        _donate_nothing()
        return compile_part(part, fakes)

    backend = aot_autograd(
        fw_compiler=inner,
        partition_fn=min_cut_rematerialization_partition,
        keep_inference_input_mutations=True,
    )
    with _tracing():
        traced: Callable[..., Any] = backend(module, list(inputs))
    return traced


@contextmanager
def _tracing() -> Iterator[None]:
    """Make AOTAutograd trace for a compiler that is not here."""
    from torch._functorch import config

    with config.patch(dict(_SETTINGS)):
        yield


def _donate_nothing() -> None:
    """Let the backward that AOTAutograd is making keep its saved tensors.

    If it were given some, torch would refuse `retain_graph=True`, and torch decides only at the
    first backward whether it is given any, when the server has long compiled it. The setting
    `donated_buffer` does not help: torch reads it again in the backward. The list is emptied and
    not replaced, because a graph of tensor subclasses has two metadata with the same list.
    """
    from torch._guards import TracingContext

    metadata = TracingContext.get().fw_metadata
    if metadata is not None and metadata.bw_donated_idxs:
        metadata.bw_donated_idxs.clear()


@contextmanager
def _keeping_random_operators() -> Iterator[None]:
    """Keep Inductor from replacing random operators in this thread.

    Its setting `fallback_random` would do this too, but it also changes the decompositions, and
    with them the patterns of attention, which are made once per process.
    """
    joint_graph: Any = importlib.import_module("torch._inductor.fx_passes.joint_graph")
    thread = threading.get_ident()
    with _one_trace:
        original = joint_graph.replace_random_passes

        def replace(module: GraphModule) -> int:
            return 0 if threading.get_ident() == thread else original(module)

        joint_graph.replace_random_passes = replace
        try:
            yield
        finally:
            joint_graph.replace_random_passes = original


def without_autocast() -> Any:
    """A context without autocast on any device."""
    return torch._C._DisableAutocast()  # noqa: SLF001
