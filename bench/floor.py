"""The minimum cost of reading a graph: creating its nodes from objects already in memory.

Two ways, both with torch's `Node` constructor and the bookkeeping that makes a graph
usable (names, lookup table, length), without a message, checks, values or a module:

- in a loop over rows, with arguments inserted by `map_arg`: the least that a reader must do;
- as straight-line code generated for one graph, with everything in local variables: faster than any
reader can be.

`public` creates the same nodes with `Graph.create_node`, as ordinary code does.

`whole` adds what a reader must also produce: the values in the nodes' metadata, and a module around
the graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.immutable_collections import immutable_list
from torch.fx.node import map_arg


def looped(module: GraphModule) -> Callable[[], Graph]:
    """Create the nodes of a graph in a loop."""
    rows = [(n.name, n.op, n.target, n.args, n.kwargs) for n in module.graph.nodes]
    olds = list(module.graph.nodes)

    def make() -> Graph:
        graph = Graph()
        made: dict[Node, Node] = {}
        find = made.__getitem__
        for old, (name, op, target, args, kwargs) in zip(olds, rows, strict=True):
            node = Node(graph, name, op, target, map_arg(args, find), map_arg(kwargs, find))
            made[old] = node
            _enter(graph, node, name)
        return graph

    return make


def public(module: GraphModule) -> Callable[[], Graph]:
    """Create the nodes of a graph in a loop with `Graph.create_node`."""
    olds = list(module.graph.nodes)

    def make() -> Graph:
        graph = Graph()
        made: dict[Node, Node] = {}
        find = made.__getitem__
        for old in olds:
            args, kwargs = map_arg(old.args, find), map_arg(old.kwargs, find)
            made[old] = graph.create_node(old.op, old.target, args, kwargs, old.name)
        return graph

    return make


def whole(module: GraphModule) -> Callable[[], GraphModule]:
    """Create the nodes in a loop with their values, and a module around them."""
    loop = looped(module)
    values = [node.meta.get("val") for node in module.graph.nodes]

    def make() -> GraphModule:
        graph = loop()
        for node, value in zip(graph.nodes, values, strict=True):
            if value is not None:
                node.meta["val"] = value
        return _LazyGraphModule(nn.Module(), graph)

    return make


def straight(module: GraphModule) -> Callable[[], Graph]:
    """Create the nodes of a graph with code generated for it."""
    numbers = {node: i for i, node in enumerate(module.graph.nodes)}
    constants: list[Any] = []

    def literal(value: Any) -> str:
        if isinstance(value, Node):
            return f"n{numbers[value]}"
        if type(value) in (tuple, list, immutable_list):
            items = "".join(f"{literal(item)}, " for item in value)
            return f"({items})" if type(value) is tuple else f"[{items}]"
        constants.append(value)
        return f"c{len(constants) - 1}"

    lines = []
    for node, i in numbers.items():
        args = literal(tuple(node.args))
        kwargs = ", ".join(f"{k!r}: {literal(v)}" for k, v in node.kwargs.items())
        target = literal(node.target)
        lines.append(
            f" n{i} = Node(graph, {node.name!r}, {node.op!r}, {target}, {args}, {{{kwargs}}})\n"
            f" enter(graph, n{i}, {node.name!r})\n"
        )
    names = ", ".join(f"c{i}=c{i}" for i in range(len(constants)))
    source = f"def make({names}):\n graph = Graph()\n{''.join(lines)} return graph\n"
    scope: dict[str, Any] = {f"c{i}": value for i, value in enumerate(constants)}
    scope.update(Node=Node, Graph=Graph, enter=_enter)
    exec(compile(source, "<floor>", "exec"), scope)
    make: Callable[[], Graph] = scope["make"]
    return make


def _enter(graph: Any, node: Any, name: str) -> None:
    """What `Graph.create_node` does besides creating a node and its name."""
    graph._insert(node)
    graph._len += 1
    graph._graph_namespace._used_names.add(name)
    graph._graph_namespace._obj_to_name[node] = name
    graph._find_nodes_lookup_table.insert(node)
