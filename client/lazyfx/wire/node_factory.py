"""Creates the nodes of a decoded graph.

The direct way calls `Node` itself and does `Graph.create_node`'s bookkeeping in bulk:
a graph decodes two to three times faster, because the names are known to be valid and
distinct and the arguments need not be searched. It leans on torch's private names, all
of them here; `create_public` does the same with public calls and is what remains if
torch moves them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch.fx import Graph, Node

# (graph, name, op, target, args, kwargs) -> the node, appended to the graph.
CreateNode = Callable[[Graph, str, str, Any, tuple[Any, ...], dict[str, Any]], Node]


def create_public(
    graph: Graph, name: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Node:
    """Append a node through `Graph.create_node`."""
    return graph.create_node(op, target, args, kwargs, name)


def create_direct(
    graph: Graph, name: str, op: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Node:
    """Append a node without its bookkeeping; `register` must follow for all of them."""
    node = Node(graph, name, op, target, args, kwargs)
    graph._insert(node)
    return node


def register(graph: Graph, nodes: Sequence[Node], names: Sequence[str]) -> None:
    """Do the bookkeeping that `create_direct` left out."""
    namespace = graph._graph_namespace
    namespace._used_names.update(names)
    namespace._obj_to_name.update(zip(nodes, names, strict=True))
    insert = graph._find_nodes_lookup_table.insert
    for node in nodes:
        insert(node)
    graph._len += len(nodes)


def supports_direct() -> bool:
    """Whether this torch has everything that the direct way leans on."""
    graph = Graph()
    namespace = getattr(graph, "_graph_namespace", None)
    return (
        callable(getattr(graph, "_insert", None))
        and hasattr(graph, "_len")
        and hasattr(getattr(graph, "_find_nodes_lookup_table", None), "insert")
        and isinstance(getattr(namespace, "_used_names", None), set)
        and isinstance(getattr(namespace, "_obj_to_name", None), dict)
    )
