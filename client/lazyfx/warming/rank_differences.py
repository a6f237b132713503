"""Compares what the ranks of a job have captured: which graphs are the same, which differ where."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from lazyfx.capture.saved_graphs import SavedGraph
from lazyfx.explaining import explain
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.warming.advice import advice_on
from lazyfx.warming.rank_processes import FinishedRank
from lazyfx.warming.rank_runs import RankGraph


@dataclass(frozen=True)
class RankDifference:
    """The first difference between a graph of one rank and that of another.

    Attributes:
        ranks: The two ranks.
        graphs: Their graphs' numbers, from 1; None if one of the ranks has no such graph.
        node: The node's name on the first of the two ranks that has it; empty if the graphs are
            equal and something else is not.
        field: The field, such as "args[1]", "value.shape" or "states[threads]"; empty if one rank
            has a node or graph that the other has not.
        before: The value on the first rank.
        after: The value on the second rank.
        place: The line of the script that the node comes from.
        more: How many more differences these two graphs have.
        advice: What to do about it.
    """

    ranks: tuple[int, int]
    graphs: tuple[int | None, int | None]
    node: str = ""
    field: str = ""
    before: str = ""
    after: str = ""
    place: str = ""
    more: int = 0
    advice: str = ""


@dataclass(frozen=True)
class RankGroup:
    """Ranks that have the same graphs in the same order.

    Attributes:
        ranks: The ranks, in order.
        first: The first of them.
        differences: How its graphs differ from those of the first group, one for each graph.
    """

    ranks: tuple[int, ...]
    first: FinishedRank
    differences: tuple[RankDifference, ...] = ()


def group_ranks(finished: Sequence[FinishedRank]) -> list[RankGroup]:
    """Group ranks by their graphs; the first group is that of the first rank."""
    groups: dict[tuple[object, ...], list[FinishedRank]] = {}
    for each in finished:
        groups.setdefault(tuple(_identities(each)), []).append(each)
    if not groups:
        return []
    base = next(iter(groups.values()))[0]
    return [
        RankGroup(
            ranks=tuple(member.run.rank for member in members),
            first=members[0],
            differences=tuple(_differences(base, members[0])),
        )
        for members in groups.values()
    ]


def _identities(rank: FinishedRank) -> list[object]:
    """For each graph of a rank: what is the same for graphs that share a compile."""
    found: list[object] = []
    for graph in rank.run.graphs:
        if not graph.recorded:
            found.append((graph.nodes, graph.place, graph.reason))
            continue
        # Names of nodes and of process groups are those of one rank, and cost no compile.
        recorded = _read(rank.folder / graph.recorded)
        digest = hashlib.sha256(recorded.graph.body).digest()
        recorded.ClearField("graph")
        found.append((digest, recorded.SerializeToString(deterministic=True)))
    return found


def _differences(base: FinishedRank, other: FinishedRank) -> Iterator[RankDifference]:
    ranks = (base.run.rank, other.run.rank)
    ours, theirs = base.run.graphs, other.run.graphs
    for i, j in _pairs(base, other):
        numbers = (None if i is None else i + 1, None if j is None else j + 1)
        if i is not None and j is not None:
            yield _first_difference(ranks, numbers, base, other)
            continue
        graph = ours[i] if i is not None else theirs[j or 0]
        only = ranks[0] if i is not None else ranks[1]
        yield RankDifference(
            ranks,
            numbers,
            before=f"{graph.nodes} nodes" if i is not None else "no such graph",
            after=f"{graph.nodes} nodes" if i is None else "no such graph",
            place=graph.place,
            advice=f"only rank {only} runs this code, or only there a graph breaks",
        )


def _pairs(base: FinishedRank, other: FinishedRank) -> Iterator[tuple[int | None, int | None]]:
    """Pairs of different graphs that begin in the same function; the rest in order."""
    functions = [_function(graph) for graph in base.run.graphs]
    others = [_function(graph) for graph in other.run.graphs]
    for first, second in _unequal(_identities(base), _identities(other)):
        matcher = SequenceMatcher(
            None, [functions[i] for i in first], [others[j] for j in second], autojunk=False
        )
        for _, i, end, j, stop in matcher.get_opcodes():
            yield from zip_longest(first[i:end], second[j:stop])


def _unequal(first: Sequence[object], second: Sequence[object]) -> Iterator[tuple[range, range]]:
    """Ranges of positions in which two sequences differ."""
    for tag, i, end, j, stop in SequenceMatcher(None, first, second, autojunk=False).get_opcodes():
        if tag != "equal":
            yield range(i, end), range(j, stop)


def _function(graph: RankGraph) -> str:
    """The function in which a graph begins: its file and name, without the line."""
    place = graph.place.partition(": ")[0]
    file, _, rest = place.partition(":")
    return f"{file} {rest.partition(' in ')[2]}"


def _first_difference(
    ranks: tuple[int, int],
    numbers: tuple[int | None, int | None],
    base: FinishedRank,
    other: FinishedRank,
) -> RankDifference:
    ours = base.run.graphs[(numbers[0] or 1) - 1]
    theirs = other.run.graphs[(numbers[1] or 1) - 1]
    if not (ours.recorded and theirs.recorded):
        reason = ours.reason if not ours.recorded else theirs.reason
        return RankDifference(
            ranks,
            numbers,
            place=ours.place,
            before=ours.reason or "can be sent",
            after=theirs.reason or "can be sent",
            advice=f"one of them cannot be sent to a server: {reason}",
        )
    first = _read(base.folder / ours.recorded)
    second = _read(other.folder / theirs.recorded)
    explanation = explain(_saved(first.graph), _saved(second.graph))
    if not explanation.same:
        found = explanation.differences[0]
        node = found.first or found.second or ""
        places = ours.places if found.first else theirs.places
        return RankDifference(
            ranks,
            numbers,
            node=f"{found.graph}.{node}" if found.graph else node,
            field=found.field,
            before=found.before or "no such node",
            after=found.after or "no such node",
            place=places.get(node, ""),
            more=len(explanation.differences) - 1,
            advice=advice_on(found, ranks),
        )
    field, before, after = next(_unlike(first, second), ("", "", ""))
    return RankDifference(
        ranks,
        numbers,
        field=field,
        before=before,
        after=after,
        place=ours.place,
        advice="the graphs are equal; give every rank the same settings and modes",
    )


def _read(path: Path) -> pb.RecordedCompile:
    return pb.RecordedCompile.FromString(path.read_bytes())


def _saved(graph: Any) -> SavedGraph:
    return SavedGraph(graph.body, graph.presentation)


def _unlike(
    first: pb.RecordedCompile, second: pb.RecordedCompile
) -> Iterator[tuple[str, str, str]]:
    """What differs between two requests for one graph: field, and its values."""
    if list(first.passes) != list(second.passes):
        names = [", ".join(each.name for each in found.passes) for found in (first, second)]
        yield "passes", names[0], names[1]
    for name in ("states", "settings"):
        ours, theirs = (_named(getattr(found.native, name)) for found in (first, second))
        for key in sorted({*ours, *theirs}):
            values = ours.get(key, "not set"), theirs.get(key, "not set")
            if values[0] != values[1]:
                yield f"{name}[{key}]", *values
    for descriptor in pb.NativeTarget.DESCRIPTOR.fields:
        before, after = (
            str(getattr(found.native.target, descriptor.name)) for found in (first, second)
        )
        if before != after:
            yield f"target.{descriptor.name}", before, after
    if first.native != second.native:
        yield "configuration", "Inductor's settings", "others"


def _named(options: Any) -> Mapping[str, str]:
    return {option.name: _shown(option.value) for option in options}


def _shown(value: Message) -> str:
    kind = value.WhichOneof("kind")
    found = getattr(value, kind) if kind else ""
    return repr(found) if isinstance(found, str) else str(found)
