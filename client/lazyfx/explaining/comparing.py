"""Compares the aligned nodes of two graphs, field by field."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass

from lazyfx.explaining.alignment import Pair, align
from lazyfx.explaining.expression_text import Expression
from lazyfx.explaining.leaves import Device, Leaf
from lazyfx.explaining.rows import Row, Rows

_NOTHING = Leaf("literal", None, "nothing")


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Attributes:
        kind: "changed", "added" (only the second graph has the node) or "removed".
        first: Name of the node in the first graph, None if it was added.
        second: Name of the node in the second graph, None if it was removed.
        field: Path of the field, such as "args[1]" or "value.shape"; empty for whole nodes.
        before: The value in the first graph.
        after: The value in the second graph.
        graph: Path of the nested graph that the node is in; empty for the root.
    """

    kind: str
    first: str | None
    second: str | None
    field: str
    before: str
    after: str
    graph: str = ""


@dataclass(frozen=True, slots=True)
class ComparedGraph:
    """Two graphs side by side.

    Attributes:
        path: Path of the nested graph; empty for the root.
        first: Rows of the first graph.
        second: Rows of the second graph.
        pairs: Positions of aligned nodes, in order.
        differences: The differences of each pair.
    """

    path: str
    first: list[Row]
    second: list[Row]
    pairs: list[Pair]
    differences: list[list[Difference]]


def compare(first: Rows, second: Rows) -> list[ComparedGraph]:
    """Compare the roots of two messages, and the graphs nested in aligned nodes."""
    identities = _Identities()
    waiting: list[tuple[str, int, int]] = [("", 0, 0)]
    compared: list[ComparedGraph] = []
    seen = {(0, 0)}
    while waiting:
        path, a, b = waiting.pop(0)
        graph = _compare_graph(path, first.graphs[a], second.graphs[b], identities)
        compared.append(graph)
        for i, j in graph.pairs:
            if i is None or j is None:
                continue
            ours = graph.first[i].fields.get("attribute.graph")
            theirs = graph.second[j].fields.get("attribute.graph")
            if ours is None or theirs is None or (ours.key, theirs.key) in seen:
                continue
            seen.add((ours.key, theirs.key))  # type: ignore[arg-type]
            inner = f"{path}.{graph.first[i].name}" if path else graph.first[i].name
            waiting.append((inner, ours.key, theirs.key))  # type: ignore[arg-type]
    return compared


class _Identities:
    """Matches numbers that are only identities, one to one."""

    def __init__(self) -> None:
        self._there: dict[Hashable, Hashable] = {}
        self._back: dict[Hashable, Hashable] = {}

    def same(self, kind: str, first: Hashable, second: Hashable) -> bool:
        """Whether two numbers correspond; the first comparison decides."""
        return (
            self._there.setdefault((kind, first), second) == second
            and self._back.setdefault((kind, second), first) == first
        )


def _compare_graph(
    path: str, first: list[Row], second: list[Row], identities: _Identities
) -> ComparedGraph:
    pairs = align(first, second)
    together = {i: j for i, j in pairs if i is not None}
    differences: list[list[Difference]] = []
    for i, j in pairs:
        if i is not None and j is not None:
            fields = _fields(first[i], second[j], f"{path}/", together, identities)
            differences.append(
                [
                    Difference("changed", first[i].name, second[j].name, field, a, b, path)
                    for field, a, b in fields
                ]
            )
        elif i is not None:
            row = first[i]
            differences.append([Difference("removed", row.name, None, "", row.summary(), "", path)])
        elif j is not None:
            row = second[j]
            differences.append([Difference("added", None, row.name, "", "", row.summary(), path)])
    return ComparedGraph(path, first, second, pairs, differences)


def _fields(
    first: Row,
    second: Row,
    scope: str,
    together: dict[int, int | None],
    identities: _Identities,
) -> Iterator[tuple[str, str, str]]:
    changed: list[str] = []
    for path in dict.fromkeys((*first.fields, *second.fields)):
        ours = first.fields.get(path, _NOTHING)
        theirs = second.fields.get(path, _NOTHING)
        if ours.kind == theirs.kind and _same(ours, theirs, scope, together, identities):
            continue
        if _NOTHING in (ours, theirs) and path.startswith(tuple(changed)):
            continue  # part of something that changed its kind
        changed += [f"{path}.", f"{path}["]
        before, after = ours.text, theirs.text
        if before == after:
            # Numbers of things that differ only in their uses.
            after += f" (another {ours.kind if ours.kind != 'expression' else 'symbol'})"
        yield path, before, after


def _same(
    ours: Leaf,
    theirs: Leaf,
    scope: str,
    together: dict[int, int | None],
    identities: _Identities,
) -> bool:
    if ours.kind == "node":
        return together.get(ours.key) == theirs.key  # type: ignore[call-overload, no-any-return]
    if ours.kind in ("memory", "graph", "group"):
        return identities.same(ours.kind, ours.key, theirs.key)
    if ours.kind == "attribute":
        return identities.same(scope, ours.key, theirs.key)
    if isinstance(ours.key, Device) and isinstance(theirs.key, Device):
        kind = ours.key.kind
        return kind == theirs.key.kind and identities.same(kind, ours.key.slot, theirs.key.slot)
    if isinstance(ours.key, Expression) and isinstance(theirs.key, Expression):
        return ours.key.parts == theirs.key.parts and all(
            a.known == b.known and identities.same("symbol", a.number, b.number)
            for a, b in zip(ours.key.symbols, theirs.key.symbols, strict=True)
        )
    return ours.key == theirs.key
