"""Prepares dynamo's graphs for native compiles: makes tensors inputs, describes inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from lazyfx.backend.input_mutation import mutates_inputs
from lazyfx.errors import UnsupportedGraphError


@dataclass(frozen=True, slots=True)
class FlatGraph:
    """A graph whose tensors are all inputs.

    Attributes:
        module: The graph.
        lifted: Tensors that were attributes; they follow the caller's inputs in each call.
        inputs: A description of each input: fake tensors, plain or symbolic numbers.
    """

    module: GraphModule
    lifted: tuple[torch.Tensor, ...]
    inputs: tuple[Any, ...]

    @property
    def devices(self) -> set[torch.device]:
        """Devices of the inputs."""
        return {value.device for value in self.inputs if isinstance(value, torch.Tensor)}


def flatten(module: GraphModule, example_inputs: Sequence[Any]) -> FlatGraph:
    """Copy a graph and make its tensors inputs.

    Raises:
        UnsupportedGraphError: The graph calls modules, or has inputs that cannot be described.
    """
    _check_inputs(module, example_inputs)
    graph = Graph()
    copies: dict[Node, Node] = {}
    own: dict[str, Node] = {}
    lifted: list[torch.Tensor] = []
    described: list[Any] = []
    mode = detect_fake_mode(example_inputs) or FakeTensorMode()
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(example_inputs):
        raise UnsupportedGraphError("the graph must take one argument per input")
    for node, example in zip(placeholders, example_inputs, strict=True):
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta = {"val": _description(node, example, mode)}
        described.append(copies[node].meta["val"])
    for node in _tensors_of_its_own(module):
        tensor = getattr(module, str(node.target))
        if str(node.target) not in own:
            placeholder = own[str(node.target)] = graph.placeholder(f"lifted_{len(lifted)}")
            placeholder.meta = {"val": mode.from_tensor(tensor, static_shapes=True)}
            described.append(placeholder.meta["val"])
            lifted.append(tensor)
        copies[node] = own[str(node.target)]
    for node in module.graph.nodes:
        if node.op == "call_module":
            raise UnsupportedGraphError("a module call", node=node.name)
        if node not in copies:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    return FlatGraph(GraphModule(module, graph), tuple(lifted), tuple(described))


def _tensors_of_its_own(module: GraphModule) -> list[Node]:
    return [
        node
        for node in module.graph.nodes
        if node.op == "get_attr"
        and isinstance(getattr(module, str(node.target), None), torch.Tensor)
    ]


def _description(node: Node, example: Any, mode: FakeTensorMode) -> Any:
    for name in ("example_value", "val"):
        if isinstance(node.meta.get(name), (FakeTensor, torch.SymInt, int, float, bool)):
            return node.meta[name]
    if isinstance(example, torch.Tensor) and not isinstance(example, FakeTensor):
        return mode.from_tensor(example, static_shapes=True)
    return example


def _check_inputs(module: GraphModule, inputs: Sequence[Any]) -> None:
    """Refuse inputs that cannot be described.

    Inputs may share memory as long as nothing is written to it.

    Raises:
        UnsupportedGraphError: Names the input and the reason.
    """
    storages: dict[int, int] = {}
    shared: tuple[int, int] | None = None
    for number, value in enumerate(inputs):
        if not isinstance(value, torch.Tensor):
            continue
        if _is_subclass(value):
            kind = type(value).__name__
            raise UnsupportedGraphError(f"input {number} is a {kind}, a tensor subclass")
        if isinstance(value, FakeTensor) or value.layout is not torch.strided:
            continue
        storage = value.untyped_storage()
        if not storage.nbytes():
            continue
        other = storages.setdefault(storage._cdata, number)  # noqa: SLF001 - storages have no other identity
        if other != number:
            shared = shared or (other, number)
    if shared and mutates_inputs(module, inputs):
        raise UnsupportedGraphError(
            f"inputs {shared[0]} and {shared[1]} share memory, and one of them is written to",
            remedy="pass copies of them, or compile the code that makes them too",
        )


def _is_subclass(value: object) -> bool:
    return bool(is_traceable_wrapper_subclass(value))
