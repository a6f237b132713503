"""Graphs that a server cannot take as dynamo captured them, traced here by AOTAutograd.

AOTAutograd replaces tensor subclasses by the tensors in them, inputs that share memory by their
base, and calls of Python functions by the operators that they call; its wrappers around the
compiled code put all of that back, and stay in this process. The forward and the backward graph
that are left have plain tensors as inputs and operators as nodes, so the server compiles them.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final, TypeAlias

import torch
from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions
from lazyfx.backend.planning import torch_aot
from lazyfx.backend.planning.parts import Computing, Part, computing_part
from lazyfx.backend.remote import GraphRequest, Runnable, make_request
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.native.torch_inductor import mode_settings

_Trace: TypeAlias = Callable[[GraphModule, Sequence[Any], torch_aot.CompilePart], Runnable]

# The backward is traced for the strides that the forward's results have uncompiled.
_KEPT_STRIDES: Final = {"keep_output_stride": True}


@dataclass(frozen=True, slots=True)
class Desugared:
    """A graph after AOTAutograd.

    Attributes:
        call: A function of the graph's inputs, once each part has its code.
        parts: Its graphs that compute something: the forward, and the backward if there is one.
        requests: The request for the code of each of them.
    """

    call: Runnable
    parts: Sequence[Part]
    requests: Sequence[GraphRequest]


def desugar(module: GraphModule, inputs: Sequence[Any], options: BackendOptions) -> Desugared:
    """Trace a graph with AOTAutograd: as Inductor does if that is possible, or else as torch does.

    Inductor's decompositions use some operators that exist only where it has been imported.

    Args:
        module: The graph; it is not changed.
        inputs: What dynamo gives to a backend.
        options: The options of the torch.compile call.

    Raises:
        UnsupportedGraphError: A graph of AOTAutograd cannot be compiled elsewhere either.
        Exception: Whatever AOTAutograd raises.
    """
    if options.compile == "inductor":
        settings = {**(mode_settings(options.mode) if options.mode else {}), **options.inductor}
        as_inductor = partial(torch_aot.trace_as_inductor, settings=settings)
        with contextlib.suppress(UnsupportedGraphError):
            return _desugar(module, inputs, options, as_inductor)
    return _desugar(module, inputs, options, torch_aot.trace_as_eager)


def _desugar(
    module: GraphModule, inputs: Sequence[Any], options: BackendOptions, trace: _Trace
) -> Desugared:
    parts: list[Part] = []
    traced: list[tuple[Computing, list[Any]]] = []

    def compile_part(graph: GraphModule, fakes: Sequence[Any]) -> Part:
        computing = computing_part(graph)
        part = Part(computing)
        if not computing.is_empty:
            parts.append(part)
            traced.append((computing, [fakes[number] for number in computing.inputs]))
        return part

    call = trace(_copy(module), inputs, compile_part)
    for computing, _ in traced[1:]:
        _refuse_draws(computing)
    # Not while torch traces, which changes settings on which an artifact depends.
    return Desugared(call, parts, [_request(*each, options) for each in traced])


def _request(computing: Computing, inputs: Sequence[Any], options: BackendOptions) -> GraphRequest:
    """The request for the code of a graph of AOTAutograd.

    Raises:
        UnsupportedGraphError: It cannot be compiled elsewhere; names the node or input.
        LazyfxError: See `make_request`.
    """
    if options.passes:
        _refuse_symbolic_strides(computing)
    sent = replace(options, inductor={**options.inductor, **_KEPT_STRIDES})
    with torch.no_grad(), torch_aot.without_autocast():
        request = make_request(computing.module, inputs, sent)
    request.digest()  # raises if the format does not support it
    return request


def _copy(module: GraphModule) -> GraphModule:
    """A copy with the same tensors: writes to them are those of the graph."""
    tensors: dict[int, Any] = {
        id(value): value
        for part in module.modules()
        for value in (*vars(part).values(), *part.parameters(False), *part.buffers(False))
        if isinstance(value, torch.Tensor)
    }
    return copy.deepcopy(module, tensors)


def _refuse_draws(backward: Computing) -> None:
    """Refuse a backward graph that draws random numbers: they may stand for those of the forward.

    Raises:
        UnsupportedGraphError: It draws some.
    """
    for node in backward.module.graph.nodes:
        if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
            raise UnsupportedGraphError("the backward graph draws random numbers", node=node.name)


def _refuse_symbolic_strides(computing: Computing) -> None:
    """Refuse passes over graphs whose results have symbolic strides, which cannot be checked.

    Raises:
        UnsupportedGraphError: There are such results.
    """
    (results,) = computing.module.graph.output_node().args
    assert isinstance(results, tuple), "made by computing_part"
    for node, strides in zip(results, computing.strides, strict=True):
        if strides is None and isinstance(node.meta.get("val"), torch.Tensor):
            raise UnsupportedGraphError(
                "passes may change the strides of results, which are symbolic",
                remedy="compile this graph without passes, or with fixed sizes",
            )
