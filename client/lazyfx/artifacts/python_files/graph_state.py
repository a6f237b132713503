"""What a compiled graph reads in addition to its inputs, and where its file gets it from."""

# ruff: noqa: SLF001 - which buffers are in no state_dict has no public reader

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from lazyfx.errors import ArtifactError
from lazyfx.shared.wire.leaf_modules import leaf_classes


@dataclass(frozen=True)
class LeafSpec:
    """A module of torch.nn that the graph calls.

    Attributes:
        type: Its class in torch.nn.
        options: Its constructor arguments.
        training: Whether it is in training mode.
    """

    type: str
    options: Mapping[str, Any]
    training: bool


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that the graph reads.

    Attributes:
        role: How it is registered: "parameter", "buffer" or "constant".
        requires_grad: Whether a parameter takes gradients.
        source: Its name in the original model's state; "" if it is in no state_dict.
    """

    role: str
    requires_grad: bool
    source: str


@dataclass
class State:
    """Everything that a graph and its nested graphs read, by dotted path in the compiled module.

    Attributes:
        graphs: Nested graphs, outer ones first.
        leaves: Called modules.
        tensors: Tensors, including those of leaf modules.
        literals: Other attributes.
        constants: Values of the tensors that have no source.
    """

    graphs: dict[str, GraphModule] = field(default_factory=dict)
    leaves: dict[str, LeafSpec] = field(default_factory=dict)
    tensors: dict[str, TensorSpec] = field(default_factory=dict)
    literals: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, torch.Tensor] = field(default_factory=dict)


def read_state(module: GraphModule, original: GraphModule) -> State:
    """Collect the state of a module.

    Args:
        module: The compiled graph.
        original: The origin of its tensors.

    Raises:
        UnsupportedGraphError: A leaf module cannot be constructed from options.
    """
    state, known = State(), _sources(original)
    for prefix, graph in _graphs(module):
        if prefix:
            state.graphs[prefix] = graph
        for node in graph.graph.nodes:
            if node.op in ("get_attr", "call_module"):
                path = f"{prefix}.{node.target}" if prefix else str(node.target)
                _read(state, known, path, _at(graph, node))
    return state


def _graphs(module: GraphModule) -> Iterator[tuple[str, GraphModule]]:
    for path, part in module.named_modules(remove_duplicate=False):
        if isinstance(part, GraphModule):
            yield path, part


def _read(state: State, known: Mapping[int, str], path: str, value: object) -> None:
    if isinstance(value, GraphModule) or path in state.leaves:
        return
    if isinstance(value, nn.Module):
        options = leaf_classes.options(value)
        state.leaves[path] = LeafSpec(leaf_classes.type_name(value), options, value.training)
        for name, tensor in leaf_classes.tensors(value).items():
            in_buffers = not isinstance(tensor, nn.Parameter)
            _read_tensor(state, known, f"{path}.{name}", tensor, in_buffers=in_buffers)
    elif isinstance(value, torch.Tensor):
        _read_tensor(state, known, path, value, in_buffers=False)
    else:
        state.literals[path] = value


def _read_tensor(
    state: State, known: Mapping[int, str], path: str, tensor: torch.Tensor, *, in_buffers: bool
) -> None:
    source = known.get(id(tensor), "")
    if not source and tensor.is_meta:
        source = path  # a saved graph has no values: the user of the file provides them
    role = "parameter" if isinstance(tensor, nn.Parameter) else "buffer"
    if role == "buffer" and not source and not in_buffers:
        role = "constant"
    if path not in state.tensors:
        state.tensors[path] = TensorSpec(role, tensor.requires_grad, source)
        if not source:
            state.constants[path] = tensor.detach()


def _sources(original: GraphModule) -> dict[int, str]:
    """Names in the state_dict of a module, by identity of the tensor."""
    found: dict[int, str] = {}
    for prefix, part in original.named_modules(remove_duplicate=False):
        own = {name: t for name, t in part._parameters.items() if t is not None}
        kept = part._buffers.keys() - part._non_persistent_buffers_set
        own |= {name: t for name, t in part._buffers.items() if t is not None and name in kept}
        for name, tensor in own.items():
            found.setdefault(id(tensor), f"{prefix}.{name}" if prefix else name)
    return found


def _at(graph: GraphModule, node: Node) -> object:
    value: object = graph
    for part in str(node.target).split("."):
        try:
            value = getattr(value, part)
        except AttributeError:
            raise ArtifactError(
                f"the graph reads {node.target!r}, which it does not hold"
            ) from None
    return value
