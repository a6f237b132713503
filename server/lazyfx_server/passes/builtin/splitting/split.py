"""Passes that split a graph into modules: by size, at given nodes, by operator support."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.fx.passes.split_module import split_module

from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.walk import attribute_at
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.errors import PassError

_CALLS = ("call_function", "call_method", "call_module")


@dataclass(frozen=True)
class SplitModule(Pass):
    """Splits the graph into modules `submod_<i>` that run one after the other.

    Every `max_nodes` calls, or at the nodes in `at`: indices of nodes in the graph that was sent,
    starting at 0. Parts are consecutive runs of the graph, so writes stay in order; regions of grad
    mode, autocast and vmap are not split. Parts are lazy modules.
    """

    name: ClassVar[str] = "split_module"

    max_nodes: int = field(
        default=0, metadata={"help": "Maximum number of calls in a part; 0 for no limit."}
    )
    at: tuple[int, ...] = field(
        default=(), metadata={"help": "Indices of nodes that start a new part."}
    )

    def __post_init__(self) -> None:
        if self.max_nodes < 0 or min(self.at, default=0) < 0:
            raise ValueError("max_nodes and at must not be negative")
        if bool(self.max_nodes) == bool(self.at):
            raise ValueError("give exactly one of max_nodes and at")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Gives a new module whose graph calls the parts."""
        return _split(module, self._part_numbers(list(module.graph.nodes)))

    def _part_numbers(self, nodes: Sequence[Node]) -> dict[Node, int]:
        cuts = sorted(self.at, reverse=True)
        numbers: dict[Node, int] = {}
        sent = -1
        number = size = 0
        open_switches = _open_switches(nodes)
        for place, node in enumerate(nodes):
            sent = max(sent, _number_when_sent(node, place))
            due = bool(self.max_nodes) and size >= self.max_nodes
            while cuts and cuts[-1] <= sent:
                due = bool(cuts.pop() >= 0)
            if due and size and not open_switches[place]:
                number, size = number + 1, 0
            numbers[node] = number
            size += node.op in _CALLS
        return numbers


def _number_when_sent(node: Node, place: int) -> int:
    """The index of a node in the graph that was sent; -1 for one that a pass created."""
    in_worker = next(iter(node.graph.nodes)).name == "n0"
    if not in_worker:
        return place
    return int(node.name[1:]) if re.fullmatch(r"n\d+", node.name) else -1


@dataclass(frozen=True)
class PartitionBySupport(Pass):
    """Partitions the graph into modules of supported and of unsupported calls.

    `supported` names operators ("linear", "relu"; "nn.Linear" for modules) in any form that
    captures produce. Parts are consecutive runs of the graph; runs of fewer than `at_least`
    supported calls are merged with their neighbours. The report's data lists the parts.
    """

    name: ClassVar[str] = "partition_by_support"

    supported: tuple[str, ...] = field(
        default=(), metadata={"help": "Names of the operators that the backend supports."}
    )
    at_least: int = field(
        default=1, metadata={"help": "Minimum number of supported calls in a part."}
    )

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Gives a new module whose graph calls the parts.

        Raises:
            PassError: No operator is named.
        """
        if not self.supported:
            raise PassError("must name at least one operator", field="options.supported")
        nodes = list(module.graph.nodes)
        wanted = frozenset(self.supported)
        is_supported = [_is_supported(node, module, wanted) for node in nodes]
        numbers, kinds = _runs(nodes, is_supported, self.at_least)
        if len(kinds) < 2:
            return PassResult(module, False, "all calls are of one kind" if kinds else "no calls")
        result = _split(module, numbers)
        parts = [{"part": f"submod_{i}", "supported": kind} for i, kind in kinds.items()]
        return PassResult(result.module, result.changed, result.note, {"parts": parts})


def _is_supported(node: Node, module: GraphModule, wanted: frozenset[str]) -> bool:
    if node.op == "call_module":
        return f"nn.{type(module.get_submodule(str(node.target))).__name__}" in wanted
    return operator_name(node) in wanted


def _runs(
    nodes: Sequence[Node], is_supported: Sequence[bool], at_least: int
) -> tuple[dict[Node, int], Mapping[int, bool]]:
    """The part of each node, and for each part whether it is supported."""
    open_switches = _open_switches(nodes)
    calls = [(n, s) for n, s in zip(nodes, is_supported, strict=True) if n.op in _CALLS]
    lengths: list[list[Node]] = []
    kinds: list[bool] = []
    for node, supported in calls:
        if not kinds or kinds[-1] != supported:
            kinds.append(supported)
            lengths.append([])
        lengths[-1].append(node)
    worth = {
        node: kind and len(run) >= at_least
        for kind, run in zip(kinds, lengths, strict=True)
        for node in run
    }
    numbers: dict[Node, int] = {}
    found: dict[int, bool] = {}
    number = 0
    for place, node in enumerate(nodes):
        if node in worth:
            torn = open_switches[place] and number in found
            if not torn and number in found and found[number] != worth[node]:
                number += 1
            found[number] = found.get(number, worth[node]) and worth[node]
        numbers[node] = number
    return numbers, found


def _open_switches(nodes: Sequence[Node]) -> list[bool]:
    """For each position, whether it is in a region of grad mode, autocast or vmap.

    Switches come in pairs; an unknown one may be either of a pair, so nothing is split between the
    first and the last switch of a graph.
    """
    places = [i for i, n in enumerate(nodes) if n.op in _CALLS and effects_of(n).state]
    first, last = (places[0], places[-1]) if places else (len(nodes), -1)
    return [first < place <= last for place in range(len(nodes))]


class _Returned(str):
    """Stands for an attribute that a graph returns directly, while torch splits the graph."""

    __slots__ = ()


def _split(module: GraphModule, numbers: Mapping[Node, int]) -> PassResult:
    calls = {number for node, number in numbers.items() if node.op in _CALLS}
    if len(calls) < 2:
        return PassResult(module, False, "one part")
    # torch assigns attributes to the parts that read them; one that no part reads would be lost.
    output = module.graph.output_node()
    output.args = torch.fx.node.map_arg(
        output.args, lambda n: _Returned(n.target) if n.op == "get_attr" else n
    )
    split = split_module(module, module, lambda node: numbers[node], keep_original_order=True)
    _return_attributes(module, split)
    split.graph.set_codegen(module.graph._codegen)  # noqa: SLF001 - torch's own way to keep a signature
    return PassResult(split, True, f"{len(calls)} parts")


def _return_attributes(module: GraphModule, split: GraphModule) -> None:
    """Lets the root read the attributes that it returns directly."""
    output = split.graph.output_node()
    reads: dict[str, Node] = {}

    def read(value: object) -> object:
        if not isinstance(value, _Returned):
            return value
        if value not in reads:
            name = _keep(split, str(value), attribute_at(module, str(value)))
            with split.graph.inserting_before(output):
                reads[value] = split.graph.create_node("get_attr", name)
        return reads[value]

    output.args = torch.fx.node.map_aggregate(output.args, read)  # type: ignore[arg-type]


def _keep(split: GraphModule, path: str, value: object) -> str:
    """Copies an attribute to the new root if it has none there yet."""
    name = path.replace(".", "_")
    while hasattr(split, name):
        name = f"{name}_"
    if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
        split.register_buffer(name, value)
    else:
        setattr(split, name, value)
    return name
