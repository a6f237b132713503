"""Random graphs, and rewrites whose patterns are cut out of them, so that many match."""

from __future__ import annotations

import operator
from random import Random
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from lazyfx_server.passes.base import InputGuard, Rewrite

_aten = torch.ops.aten
# Kind, target, number of operands; few, so that patterns occur often and overlap.
_CALLS: list[tuple[str, Any, int]] = [
    ("call_function", torch.add, 2),
    ("call_function", operator.mul, 2),
    ("call_function", _aten.add.Tensor, 2),
    ("call_function", _aten.mul.Tensor, 2),
    ("call_function", _aten.relu.default, 1),
    ("call_function", torch.sin, 1),
    ("call_function", torch.cos, 1),
    ("call_function", torch.cat, 0),
    ("call_function", torch.clamp, 1),
    ("call_method", "neg", 1),
    ("call_method", "exp", 1),
    ("call_method", "add_", 2),
    ("call_function", torch.dropout, 1),
]
_RARE = [("call_function", torch.tanh, 1), ("call_method", "relu_", 1)]


def graph_and_rewrites(draw: Random) -> tuple[GraphModule, list[Rewrite]]:
    """A module, perhaps with another inside, and up to twelve rewrites for it."""
    root = nn.Module()
    if draw.random() < 0.3:
        root.inner = GraphModule(nn.Module(), _graph(draw, draw.randrange(3, 12)))
    module = GraphModule(root, _graph(draw, draw.randrange(4, 40), inner=hasattr(root, "inner")))
    return module, [_rewrite(draw, module) for _ in range(draw.randrange(1, 13))]


def _graph(draw: Random, calls: int, *, inner: bool = False) -> Graph:
    graph = Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(draw.randrange(1, 4))]
    for node in nodes:
        node.meta["val"] = torch.empty((2, draw.choice((3, 4))), device="meta")
    for _ in range(calls):
        nodes.append(_call(draw, graph, nodes))
    if inner:
        with graph.inserting_after(draw.choice(nodes[len(nodes) // 2 :])):
            graph.call_module("inner", (nodes[0],))
    graph.output(tuple(draw.sample(nodes, min(len(nodes), draw.randrange(1, 4)))))
    return graph


def _call(draw: Random, graph: Graph, nodes: list[Node]) -> Node:
    kind, target, operands = draw.choice(_CALLS if draw.random() < 0.95 else _RARE)
    recent = nodes[-5:] if draw.random() < 0.8 else nodes
    given: tuple[Any, ...] = tuple(draw.choice(recent) for _ in range(operands))
    named: dict[str, Any] = {}
    if operands == 2 and draw.random() < 0.3:
        given = (given[0], draw.choice((1, 1.0, True, 2)))
    if target is torch.cat:
        given = ([draw.choice(recent) for _ in range(draw.randrange(1, 3))],)
        named = draw.choice(({}, {"dim": 0}))
    if target is torch.clamp:
        named = draw.choice(({"min": 0}, {"min": 0, "max": 1}, {"max": 1, "min": 0}))
    if target is _aten.add.Tensor and draw.random() < 0.3:
        named = draw.choice(({"alpha": 1}, {"alpha": 2}))
    if target is torch.dropout:
        given = (*given, 0.5, draw.random() < 0.5)
    return graph.create_node(kind, target, given, named)


def _rewrite(draw: Random, module: GraphModule) -> Rewrite:
    source = module.graph
    if hasattr(module, "inner") and draw.random() < 0.3:
        source = module.inner.graph
    pattern = _cut(draw, source)
    inputs = [node for node in pattern.nodes if node.op == "placeholder"]
    results = len(pattern.output_node().all_input_nodes)
    replacement, constant = _replacement(draw, len(inputs), results)
    guards: tuple[InputGuard, ...] = ()
    if draw.random() < 0.15:
        guards = (InputGuard(draw.randrange(len(inputs)), shape=(2, draw.choice((-1, 3)))),)
    at_most = draw.choice((0, 0, 0, 1, 2))
    holder = nn.Module()
    holder.register_buffer("constant", constant)
    return Rewrite(
        GraphModule(nn.Module(), pattern), GraphModule(holder, replacement), guards, at_most
    )


def _cut(draw: Random, source: Graph) -> Graph:
    """A pattern like a part of a graph: a few calls that use each other, sometimes changed."""
    calls = [node for node in source.nodes if node.op in ("call_function", "call_method")]
    part = {draw.choice(calls)}
    for _ in range(draw.randrange(0, 5)):
        near = {n for node in part for n in (*node.all_input_nodes, *node.users)} - part
        near &= set(calls)
        if near:
            part.add(draw.choice(sorted(near)))
    changed = draw.random() < 0.15
    graph = Graph()
    made: dict[Node, Any] = {}

    def operand(node: Node) -> Node:
        if node not in made:
            made[node] = graph.placeholder(f"p{len(made)}")
        found: Node = made[node]
        return found

    for node in sorted(part):
        given = map_arg(node.args, operand)
        if draw.random() < 0.1:
            # A literal, or a whole list, becomes an input.
            number = draw.randrange(len(given))
            given = (*given[:number], graph.placeholder(f"w{len(made)}"), *given[number + 1 :])
        target = node.target
        if changed and node.op == "call_function" and draw.random() < 0.5:
            target = draw.choice((torch.sin, torch.cos, torch.add))
        made[node] = graph.create_node(node.op, target, given, map_arg(node.kwargs, operand))
    ends = [node for node in graph.nodes if not node.users and node.op != "placeholder"]
    if draw.random() < 0.2:
        inner = [n for n in graph.nodes if n.users and n.op != "placeholder"]
        ends += draw.sample(inner, min(1, len(inner)))
    draw.shuffle(ends)
    graph.output(ends[0] if len(ends) == 1 else tuple(ends))
    _drop_unused_inputs(graph)
    return _placeholders_first(graph)


def _drop_unused_inputs(graph: Graph) -> None:
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users:
            graph.erase_node(node)


def _placeholders_first(graph: Graph) -> Graph:
    ordered = Graph()
    copied: dict[Node, Node] = {}
    for node in graph.nodes:
        if node.op == "placeholder":
            copied[node] = ordered.node_copy(node)
    result = ordered.graph_copy(graph, copied)
    ordered.output(result)
    return ordered


def _replacement(draw: Random, inputs: int, results: int) -> tuple[Graph, torch.Tensor]:
    graph = Graph()
    nodes = [graph.placeholder(f"r{i}") for i in range(inputs)]
    if not nodes or draw.random() < 0.2:
        nodes.append(graph.get_attr("constant"))
    for _ in range(draw.randrange(0 if results <= len(nodes) else results, 4 + results)):
        nodes.append(_call(draw, graph, nodes))
    ends = draw.sample(nodes, results) if len(nodes) >= results else nodes * results
    graph.output(ends[0] if results == 1 else tuple(ends[:results]))
    return graph, torch.full((3,), float(draw.randrange(9)))
