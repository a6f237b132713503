"""TorchScript of a graph, for `torch.jit.load`.

torch.jit.script cannot take a lazy module, calling conventions of torch.export, or
overloads of operators by name; it chooses overloads by its own types. So the graph is
copied into an eager module that has none of these.
"""

from __future__ import annotations

import io
import operator
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Final

import torch
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import UnsupportedGraphError

# Operators that write into a tensor in Python, and in TorchScript make a new one, or are none.
_WRITTEN_AS: Final[dict[object, str]] = {
    operator.iand: "bitwise_and_",
    operator.ifloordiv: "floor_divide_",
    operator.ior: "bitwise_or_",
    operator.ipow: "pow_",
    operator.ixor: "bitwise_xor_",
}


def script_module(eager: GraphModule) -> bytes:
    """Scripts a graph.

    Args:
        eager: From `eager_copy`. Its parameters are written as they are. GraphModules inside
            must be called as modules, not handed to higher-order operators.

    Returns:
        An archive; `torch.jit.load` gives a module that takes the graph's inputs by place.

    Raises:
        UnsupportedGraphError: TorchScript has no words for the graph; names the node.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch calls its own function deprecated
            torch.jit.save(torch.jit.script(eager), buffer)
    except Exception as error:  # torch.jit raises errors of every kind
        raise UnsupportedGraphError(
            f"TorchScript cannot express the graph: {_reason(error)}",
            node=_node_at_fault(eager, str(error)),
            remedy="ask for code, a pickle or the graph instead",
        ) from error
    return buffer.getvalue()


Generation = Callable[[Graph], AbstractContextManager[None]]


def eager_copy(module: GraphModule, generation: Generation | None = None) -> GraphModule:
    """An eager copy: plain calling convention, no annotations, operators without overloads.

    Code is generated and compiled once for it and once for each GraphModule inside.

    Args:
        module: What to copy.
        generation: Is around the generation of each graph's code; a server looks at it there.
    """
    graph = Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    for node in graph.nodes:
        node.type = None
        if isinstance(node.target, OpOverload):
            node.target = node.target.overloadpacket
        elif node.target in _WRITTEN_AS:
            node.op, node.target = "call_method", _WRITTEN_AS[node.target]
    with nullcontext() if generation is None else generation(graph):
        eager = GraphModule(module, graph, class_name=type(module).__name__)
    for path, child in list(eager.named_children()):
        if isinstance(child, GraphModule):
            setattr(eager, path, eager_copy(child, generation))
    return eager


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__


def _node_at_fault(module: GraphModule, message: str) -> str | None:
    """The node whose line TorchScript points at, if it does."""
    lines = message.splitlines()
    marked = next((i for i, line in enumerate(lines) if "<--- HERE" in line), 0)
    name = lines[marked - 1].strip().partition(" = ")[0].partition(":")[0] if marked else ""
    nodes: dict[str, Node] = {node.name: node for node in module.graph.nodes}
    return name if name in nodes else None
