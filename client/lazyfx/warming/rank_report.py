"""The report on a warmed job, as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazyfx.warming.rank_differences import RankDifference, RankGroup
from lazyfx.warming.rank_processes import FinishedRank
from lazyfx.warming.rank_runs import RankGraph

_OUTCOMES = {
    "compiled": "compiled now",
    "known": "already known",
    "captured": "captured",
    "local": "will be compiled by each rank",
}


def write_report(finished: Sequence[FinishedRank], groups: Sequence[RankGroup]) -> str:
    """What was compiled for which ranks, where they differ, and what is not known."""
    lines: list[str] = []
    for group in groups:
        lines += _group(group, finished)
    lines += _problems(finished)
    lines += _unforeseen(finished)
    return "\n".join(lines)


def _group(group: RankGroup, finished: Sequence[FinishedRank]) -> Iterator[str]:
    graphs = group.first.run.graphs
    count = f"{len(graphs)} graph{'' if len(graphs) == 1 else 's'}"
    same = ", the same on each" if len(group.ranks) > 1 else ""
    yield f"{ranks_text(group.ranks)}: {count}{same}"
    members = [each.run for each in finished if each.run.rank in group.ranks]
    for number, graph in enumerate(graphs, start=1):
        outcomes = [run.graphs[number - 1] for run in members]
        yield f"  {number}: {_graph(graph, outcomes)}"
    for difference in group.differences:
        yield from _difference(difference)


def _graph(graph: RankGraph, outcomes: Sequence[RankGraph]) -> str:
    # The first of several ranks causes the compile that the others find.
    found = {each.outcome for each in outcomes}
    outcome = next(name for name in ("local", "compiled", "known", "captured") if name in found)
    reason = next((each.reason for each in outcomes if each.reason), "")
    text = f"{graph.nodes} nodes, {graph.digest[:12] or 'no digest'}"
    text += f", {graph.place}" if graph.place else ""
    text += f": {_OUTCOMES[outcome]}"
    return f"{text}: {reason}" if reason else text


def _difference(difference: RankDifference) -> Iterator[str]:
    first, second = difference.ranks
    numbers = [number for number in difference.graphs if number is not None]
    where = f"graph {numbers[-1]}"
    node = f", node {difference.node}" if difference.node else ""
    field = f": {difference.field}" if difference.field else ""
    yield (
        f"  differs from rank {first} in {where}{node}{field}: {difference.before} on rank "
        f"{first}, {difference.after} on rank {second}"
    )
    if difference.place:
        yield f"    {difference.place}"
    yield f"    {difference.advice}"
    if difference.more:
        yield f"    (the first of {difference.more + 1} differences)"


def _problems(finished: Sequence[FinishedRank]) -> Iterator[str]:
    for each in finished:
        if each.run.problem:
            yield f"rank {each.run.rank} failed: {each.run.problem}"


def _unforeseen(finished: Sequence[FinishedRank]) -> Iterator[str]:
    breaks = dict.fromkeys(each for rank in finished for each in rank.run.breaks)
    on_data = [each for each in breaks if each.depends_on_data]
    for each in on_data:
        yield f"cannot be foreseen: {each.place or 'a graph break'}: {each.reason}"
    if on_data:
        yield (
            "  the values decide which code runs next, and the job has other values: it may "
            "compile graphs there that are not listed here"
        )


def ranks_text(ranks: Sequence[int]) -> str:
    """Ranks as text: "rank 3", "ranks 0-3, 8"."""
    parts: list[str] = []
    start = previous = ranks[0]
    for rank in (*ranks[1:], None):
        if rank is not None and rank == previous + 1:
            previous = rank
            continue
        parts.append(str(start) if start == previous else f"{start}-{previous}")
        if rank is not None:
            start = previous = rank
    return f"rank{'' if len(ranks) == 1 else 's'} {', '.join(parts)}"
