"""Graphs that a server cannot take as dynamo captured them, traced here by AOTAutograd.

AOTAutograd replaces tensor subclasses by the tensors in them, inputs that share memory by their
base, and calls of Python functions by the operators that they call; its wrappers around the
compiled code put all of that back, and stay in this process. The forward and the backward graph
that are left have plain tensors as inputs and operators as nodes, so the server compiles them.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.fx import GraphModule, Node

from lazyfx.backend import torch_aot
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.remote import GraphRequest, Runnable, make_request
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.native.torch_inductor import mode_settings

# The backward is traced for the strides that the forward's results have uncompiled.
_KEPT_STRIDES: Final = {"keep_output_stride": True}


class Part:
    """One graph of AOTAutograd, a function of a list of inputs once it has its code.

    Args:
        graph_request: The request for its code.
        strides: The strides of each result; None where it is no tensor, or they are symbolic.
    """

    def __init__(
        self, graph_request: GraphRequest, strides: Sequence[tuple[int, ...] | None]
    ) -> None:
        self.graph_request = graph_request
        self.code: Runnable | None = None
        # AOTAutograd passes a list, which is emptied so that nothing keeps the inputs alive. It
        # looks for this in wrappers too, which copy only what the instance has.
        self._boxed_call = True
        self._strides = tuple(strides)

    def __call__(self, inputs: list[Any]) -> Any:
        """Run the code."""
        assert self.code is not None, "set before anything is called"
        given = tuple(inputs)
        inputs.clear()
        results = self.code(*given)
        return [
            result if strides is None or result.stride() == strides else _strided(result, strides)
            for result, strides in zip(results, self._strides, strict=True)
        ]


@dataclass(frozen=True)
class Desugared:
    """A graph after AOTAutograd.

    Attributes:
        call: A function of the graph's inputs, once each part has its code.
        parts: Its graphs: the forward first, then the backward if there is one.
    """

    call: Runnable
    parts: Sequence[Part]


def desugar(
    module: GraphModule, inputs: Sequence[Any], options: BackendOptions
) -> Desugared:
    """Trace a graph with AOTAutograd.

    Args:
        module: The graph; it is not changed.
        inputs: What dynamo gives to a backend.
        options: The options of the torch.compile call.

    Raises:
        UnsupportedGraphError: A graph of AOTAutograd cannot be compiled elsewhere either.
        Exception: Whatever AOTAutograd raises.
    """
    parts: list[Part] = []
    settings = {**(mode_settings(options.mode) if options.mode else {}), **options.inductor}
    sent = replace(options, inductor={**options.inductor, **_KEPT_STRIDES})

    def compile_part(part: GraphModule, fakes: Sequence[Any]) -> Part:
        strides = _output_strides(part, symbolic_allowed=not options.passes)
        with torch.no_grad(), torch_aot.without_autocast():
            made = Part(make_request(part, fakes, sent), strides)
        made.graph_request.digest()
        parts.append(made)
        return made

    own = _copy(module)
    if options.compile == "eager":
        call = torch_aot.trace_as_eager(own, inputs, compile_part)
    else:
        call = torch_aot.trace_as_inductor(own, inputs, compile_part, settings)
    return Desugared(call, parts)


def _copy(module: GraphModule) -> GraphModule:
    """A copy with the same tensors: writes to them are those of the graph."""
    tensors = {
        id(value): value
        for part in module.modules()
        for value in (*vars(part).values(), *part.parameters(False), *part.buffers(False))
        if isinstance(value, torch.Tensor)
    }
    return copy.deepcopy(module, dict(tensors))


def _output_strides(
    module: GraphModule, *, symbolic_allowed: bool
) -> list[tuple[int, ...] | None]:
    (results,) = module.graph.output_node().args
    assert isinstance(results, (tuple, list)), "graphs of AOTAutograd return a tuple"
    return [_strides(result, symbolic_allowed=symbolic_allowed) for result in results]


def _strides(result: Any, *, symbolic_allowed: bool) -> tuple[int, ...] | None:
    value = result.meta.get("val") if isinstance(result, Node) else None
    if not isinstance(value, torch.Tensor) or value.layout is not torch.strided:
        return None
    strides = tuple(value.stride())
    if all(type(stride) is int for stride in strides):
        return strides
    if not symbolic_allowed:
        raise UnsupportedGraphError(
            "passes may change the strides of results, which are symbolic",
            remedy="compile this graph without passes, or with fixed sizes",
        )
    return None


def _strided(tensor: torch.Tensor, strides: tuple[int, ...]) -> torch.Tensor:
    made = torch.empty_strided(
        tuple(tensor.shape), strides, dtype=tensor.dtype, device=tensor.device
    )
    return made.copy_(tensor)
