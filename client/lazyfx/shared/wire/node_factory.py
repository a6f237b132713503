"""Creates the nodes of a decoded graph.

The direct way skips `Graph.create_node`, which searches all arguments and generates a unique name
for every node: the decoder knows that its names are valid and distinct. It creates all nodes first,
so that back-references can be resolved in one step, and sets their arguments afterwards; each step
is one loop in C over all nodes. It uses private names of torch, all of them here; `create_public`
does the same with public calls, as a fallback if torch moves them.
"""
# ruff: noqa: SLF001 - this is the one file that leans on torch.fx's private names

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from operator import attrgetter, setitem
from typing import Any, NamedTuple

from torch.fx import Graph, Node
from torch.fx import node as fx_node
from torch.fx.immutable_collections import immutable_dict

_allocate = Node.__new__
_initialize: Any = getattr(fx_node, "_NodeBase", Node).__init__
_set_arguments: Any = getattr(Node, "_update_args_kwargs", None)
# Bypasses the property, which costs more than the access itself.
_args, _kwargs = map(
    attrgetter, ("_args", "_kwargs") if hasattr(Node, "_args") else ("args", "kwargs")
)
_NO_KWARGS: dict[str, Any] = immutable_dict()

Fill = Callable[[tuple[Node, ...]], Any]


class CallShape(NamedTuple):
    """What all nodes with the same call have in common.

    Attributes:
        op: fx opcode.
        target: The callable or method name; None if it differs per node.
        holes: How many operands a node takes.
        args: Creates positional arguments from the operands; or a tuple that follows them.
        kwargs: Creates keyword arguments from the operands; None if there are none.
    """

    op: str
    target: Any
    holes: int
    args: Fill | tuple[Any, ...] = ()
    kwargs: Fill | None = None


@dataclass(frozen=True, slots=True, eq=False)
class NodePlan:
    """The nodes of one graph, before they are created.

    Attributes:
        names: One per node, distinct.
        calls: The call index of each node.
        shapes: One per call.
        targets: One per node.
        operands: Indices of the nodes that fill the holes, for all nodes in order.
        counts: The greatest suffix of each stem, if not 0: {"add": 3} for "add", "add_3".
    """

    names: Sequence[str]
    calls: Sequence[int]
    shapes: Mapping[int, CallShape]
    targets: Sequence[Any]
    operands: Sequence[int]
    counts: Mapping[str, int]


def given_arguments(nodes: Sequence[Node]) -> Iterator[tuple[Node, tuple[Any, ...], Any]]:
    """Each node with its positional and its keyword arguments."""
    return zip(nodes, map(_args, nodes), map(_kwargs, nodes), strict=True)


def create_public(graph: Graph, plan: NodePlan) -> list[Node]:
    """Append the nodes to an empty graph through `Graph.create_node`."""
    nodes: list[Node] = []
    position = 0
    for name, call, target in zip(plan.names, plan.calls, plan.targets, strict=True):
        shape = plan.shapes[call]
        end = position + shape.holes
        operands = tuple(nodes[number] for number in plan.operands[position:end])
        position = end
        args = operands + shape.args if isinstance(shape.args, tuple) else shape.args(operands)
        kwargs = {} if shape.kwargs is None else shape.kwargs(operands)
        nodes.append(graph.create_node(shape.op, target, args, kwargs, name))
    return nodes


def create_direct(graph: Graph, plan: NodePlan) -> list[Node]:
    """Append the nodes to an empty graph, and set its length, names and targets."""
    calls, shapes = plan.calls, plan.shapes
    nodes: list[Node] = list(map(_allocate, repeat(Node, len(calls))))
    ops = map({call: shape.op for call, shape in shapes.items()}.__getitem__, calls)
    _run(map(_initialize, nodes, repeat(graph), plan.names, ops, plan.targets, repeat(None)))
    _run(map(_set_arguments, nodes, *_arguments(nodes, plan)))
    _run(map(graph._root._prepend, nodes))
    graph._len += len(nodes)
    namespace = graph._graph_namespace
    namespace._used_names.update(plan.names)
    namespace._obj_to_name.update(zip(nodes, plan.names, strict=True))
    namespace._base_count.update(plan.counts)
    # Looked up once per target: hashing an operator is slow.
    lookup = graph._find_nodes_lookup_table
    examples = dict(zip(calls, nodes, strict=True))
    found = {
        (shape.op, id(shape.target)): lookup.table[lookup._key(examples[call])]
        for call, shape in {(s.op, id(s.target)): (c, s) for c, s in shapes.items()}.values()
    }
    buckets = {call: found[shape.op, id(shape.target)] for call, shape in shapes.items()}
    _run(map(setitem, map(buckets.__getitem__, calls), nodes, repeat(None)))
    return nodes


def _arguments(nodes: Sequence[Node], plan: NodePlan) -> tuple[list[Any], list[Any]]:
    """The positional and keyword arguments of each node."""
    operands = tuple(map(nodes.__getitem__, plan.operands))
    parts = {call: (shape.holes, shape.args, shape.kwargs) for call, shape in plan.shapes.items()}
    args: list[Any] = []
    kwargs: list[Any] = []
    position = 0
    for holes, make_args, make_kwargs in map(parts.__getitem__, plan.calls):
        end = position + holes
        own = operands[position:end]
        position = end
        args.append(own + make_args if isinstance(make_args, tuple) else make_args(own))
        kwargs.append(_NO_KWARGS if make_kwargs is None else make_kwargs(own))
    return args, kwargs


def _run(steps: Iterable[object]) -> None:
    """Exhaust an iterator without keeping its items."""
    deque(steps, maxlen=0)


@lru_cache(maxsize=1)
def supports_direct() -> bool:
    """Whether both ways create equal graphs in this torch."""
    added = CallShape(
        "call_function",
        abs,
        2,
        lambda operands: ([operands[0], 1],),
        lambda operands: {"k": (operands[1],)},
    )
    plan = NodePlan(
        ["x", "abs_1", "output"],
        [0, 1, 2],
        {0: CallShape("placeholder", None, 0), 1: added, 2: CallShape("output", None, 1)},
        ["x", abs, "output"],
        [0, 0, 1],
        {"abs": 1},
    )
    found = []
    try:
        for create in (create_public, create_direct):
            graph = Graph()
            create(graph, plan)
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
