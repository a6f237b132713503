"""Creates the nodes of a decoded graph.

The direct way skips `Graph.create_node`, which searches all arguments and makes up a
unique name for every node: the decoder knows its names to be valid and distinct, and
does the bookkeeping in bulk. It leans on torch's private names, all of them here;
`PublicFactory` does the same with public calls and is what remains if torch moves them.
"""
# ruff: noqa: SLF001 - this is the one file that leans on torch.fx's private names

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol

from torch.fx import Graph, Node
from torch.fx import node as fx_node

_allocate = Node.__new__
_initialize: Any = getattr(fx_node, "_NodeBase", Node).__init__
_set_arguments: Any = getattr(Node, "_update_args_kwargs", None)


class NodeFactory(Protocol):
    """Appends nodes to one graph."""

    def create(
        self, name: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Node:
        """Make a node at the end of the graph."""

    def finish(
        self, nodes: Sequence[Node], names: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        """Complete the graph's bookkeeping; called once, after the last node.

        Args:
            nodes: All nodes in order.
            names: Their names.
            counts: The greatest number behind each stem: {"add": 3} for "add", "add_3".
        """


class PublicFactory:
    """Creates nodes through `Graph.create_node`."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph

    def create(
        self, name: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Node:
        """Make a node at the end of the graph."""
        return self._graph.create_node(op, target, args, kwargs, name)

    def finish(
        self, nodes: Sequence[Node], names: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        """Nothing is left to do."""


class DirectFactory:
    """Creates nodes of an empty graph without searching arguments and making up names."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._append = graph._root._prepend

    def create(
        self, name: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Node:
        """Make a node at the end of the graph."""
        node = _allocate(Node)
        _initialize(node, self._graph, name, op, target, None)
        _set_arguments(node, args, kwargs)
        self._append(node)
        return node

    def finish(
        self, nodes: Sequence[Node], names: Sequence[str], counts: Mapping[str, int]
    ) -> None:
        """Tell the graph its length, its names, and where to find its nodes."""
        graph = self._graph
        graph._len += len(nodes)
        namespace = graph._graph_namespace
        namespace._used_names.update(names)
        namespace._obj_to_name.update(zip(nodes, names, strict=True))
        namespace._base_count.update(counts)
        buckets: dict[tuple[str, int], dict[Node, None]] = {}
        for node in nodes:
            op = node.op
            # Found by identity first: hashing an operator is slow.
            key = (op, id(node.target) if op == "call_function" else 0)
            bucket = buckets.get(key)
            if bucket is None:
                table = graph._find_nodes_lookup_table
                bucket = buckets[key] = table.table[table._key(node)]
            bucket[node] = None


@lru_cache(maxsize=1)
def supports_direct() -> bool:
    """Whether the direct way makes a graph equal to the public one's in this torch."""
    found = []
    try:
        for factory_class in (PublicFactory, DirectFactory):
            graph = Graph()
            factory: NodeFactory = factory_class(graph)
            first = factory.create("x", "placeholder", "x", (), {})
            second = factory.create("abs_1", "call_function", abs, ([first, 1],), {"k": (first,)})
            last = factory.create("output", "output", "output", (second,), {})
            factory.finish([first, second, last], ["x", "abs_1", "output"], {"abs": 1})
            graph.lint()
            found.append(
                (
                    str(graph),
                    len(graph.nodes),
                    [list(node.users) == list(node.next.users) for node in graph.nodes],
                    [
                        (node.args, node.kwargs, node.all_input_nodes) for node in graph.nodes
                    ].__repr__(),
                    [n.name for n in graph.find_nodes(op="call_function", target=abs)],
                    graph.placeholder("x").name,
                    graph.call_function(abs, (1,)).name,
                )
            )
    except Exception:  # noqa: BLE001 - whatever torch changed, the public way is there
        return False
    return found[0] == found[1]
