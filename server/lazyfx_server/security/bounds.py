"""How large the parts of one graph may be, beside its nodes and bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from lazyfx_server.v1 import worker_pb2 as worker


@dataclass(frozen=True)
class GraphBounds:
    """Bounds of one graph; see the settings of the same names."""

    max_edges: int = 2_000_000
    max_calls: int = 200_000
    max_arguments: int = 100_000
    max_string_bytes: int = 2**20
    max_rank: int = 64
    max_elements: int = 2**48
    max_outputs: int = 10_000

    @classmethod
    def of(cls, message: worker.GraphLimits) -> GraphBounds:
        """The bounds that came with a job; those that did not are as by default."""
        return cls(**{field.name: value for field, value in message.ListFields()})

    def message(self) -> worker.GraphLimits:
        """The bounds to send with a job."""
        return worker.GraphLimits(
            **{name: getattr(self, name) for name in self.__dataclass_fields__}
        )


DEFAULT_BOUNDS = GraphBounds()
_SEVERAL = frozenset({"list", "tuple"})


def check_bounds(body: graph_pb2.GraphBody, bounds: GraphBounds) -> None:
    """Check that no part of a graph is over its bound.

    Works on the tables, once for each distinct row.

    Raises:
        DecodeError: One is; names the field, and the setting.
    """
    edges = sum(len(graph.operands) for graph in body.graphs)
    _within(edges, "max_edges", bounds, "edges", "graphs")
    _within(len(body.calls), "max_calls", bounds, "distinct calls", "calls")
    for i, string in enumerate(body.strings):
        _within(len(string), "max_string_bytes", bounds, "characters", "strings", i)
    for i, call in enumerate(body.calls):
        count = _count(call.args) + _count([row.value for row in call.kwargs])
        _within(count, "max_arguments", bounds, "arguments", "calls", i)
    for i, row in enumerate(body.tensors):
        shape = list(row.shape)
        _within(len(shape), "max_rank", bounds, "dimensions", "tensors", i)
        _within(math.prod(shape), "max_elements", bounds, "elements", "tensors", i)
    for i, value in enumerate(body.values):
        if (kind := value.WhichOneof("kind")) in _SEVERAL:
            outputs = len(getattr(value, kind).items)
            _within(outputs, "max_outputs", bounds, "outputs", "values", i)


def _within(
    found: int, name: str, bounds: GraphBounds, what: str, table: str, row: int | None = None
) -> None:
    most = getattr(bounds, name)
    if found > most:
        field = table if row is None else f"{table}[{row}]"
        raise DecodeError(f"{found} {what}, {most} are taken (setting {name})", field=field)


def _count(arguments: Sequence[graph_pb2.Argument]) -> int:
    return len(arguments) + sum(
        _count(items) for argument in arguments if (items := _items(argument))
    )


def _items(argument: graph_pb2.Argument) -> Sequence[graph_pb2.Argument]:
    kind = argument.WhichOneof("kind")
    if kind in ("list", "tuple", "size"):
        items: Sequence[graph_pb2.Argument] = getattr(argument, kind).items
        return items
    if kind == "dictionary":
        pairs: Iterable[graph_pb2.DictionaryEntry] = argument.dictionary.entries
        return [part for entry in pairs for part in (entry.key, entry.value)]
    return ()
