"""The results of bench/training.py: samples, a table of them, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

DISK, MEGA, REDIS, SCCACHE, LAZYFX = "local disk", "mega-cache", "redis", "sccache", "lazyfx"
PEERS = (DISK, MEGA, REDIS, SCCACHE, LAZYFX)
COLD, WARM, LITERAL, DEEPER = "cold", "warm", "one literal", "twice the layers"
STARTS = (COLD, WARM, LITERAL, DEEPER)


@dataclass(frozen=True)
class Sample:
    """One run of all ranks.

    Attributes:
        peer: One of `PEERS`.
        start: One of `STARTS`.
        ranks: Number of parallel processes.
        first_step: Median seconds of the ranks to the end of the first step.
        cpu: CPU seconds of all ranks.
        server_cpu: CPU seconds of the peer's own processes: a server, its workers and compilers.
        compiles: Native compiles of a lazyfx server.
    """

    peer: str
    start: str
    ranks: int
    first_step: float
    cpu: float
    server_cpu: float = 0.0
    compiles: int = 0

    @property
    def all_cpu(self) -> float:
        """CPU seconds of the ranks and of the server."""
        return self.cpu + self.server_cpu


class Samples:
    """All samples, by number of ranks, start and peer."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._found: dict[tuple[int, str, str], list[Sample]] = {}
        for sample in samples:
            self._found.setdefault((sample.ranks, sample.start, sample.peer), []).append(sample)

    @property
    def ranks(self) -> list[int]:
        """Every number of ranks, in order."""
        return sorted({ranks for ranks, _, _ in self._found})

    def of(self, ranks: int, start: str, peer: str) -> list[Sample]:
        """The runs of one peer with that many ranks."""
        return self._found.get((ranks, start, peer), [])

    def median(
        self, ranks: int, start: str, peer: str, number: Callable[[Sample], float]
    ) -> float | None:
        """The median of one number; None if nothing was measured."""
        runs = self.of(ranks, start, peer)
        return statistics.median(map(number, runs)) if runs else None


def table(samples: Samples, title: str) -> Table:
    """One line for each number of ranks, start and peer.

    Numbers are relative to those of a cold start of local Inductor with as many ranks.
    """
    made = Table(title=title, title_justify="left")
    for heading in (
        "ranks", "start", "peer", "runs", "first step s", "/ local cold", "CPU s", "server",
        "/ local cold", "compiles",
    ):  # fmt: skip
        made.add_column(heading, justify="left" if heading in ("start", "peer") else "right")
    for ranks in samples.ranks:
        for start in STARTS:
            for peer in PEERS:
                if runs := samples.of(ranks, start, peer):
                    made.add_row(*_row(samples, runs), end_section=peer == PEERS[-1])
    return made


def _row(samples: Samples, runs: Sequence[Sample]) -> list[str]:
    first = runs[0]
    server = statistics.median(run.server_cpu for run in runs)
    return [
        *(str(first.ranks), first.start, first.peer, str(len(runs))),
        _spread([run.first_step for run in runs]),
        _of_local(samples, first, _first_step),
        _spread([run.all_cpu for run in runs]),
        f"{server:.1f}" if first.peer in (SCCACHE, LAZYFX) else "",
        _of_local(samples, first, _all_cpu),
        "/".join(sorted({str(run.compiles) for run in runs})) if first.peer == LAZYFX else "",
    ]


def _of_local(samples: Samples, of: Sample, number: Callable[[Sample], float]) -> str:
    base = samples.median(of.ranks, COLD, DISK, number)
    own = samples.median(of.ranks, of.start, of.peer, number)
    return f"{own / base:.2f}" if base and own is not None else ""


def goals(samples: Samples) -> list[str]:
    """For each column, whether lazyfx is the best, and whether it compiled once for all ranks.

    Columns in which no other peer was measured are omitted.
    """
    lines = []
    for ranks in samples.ranks:
        for start in STARTS:
            for what, number in (("first step", _first_step), ("CPU", _all_cpu)):
                others = {
                    peer: found
                    for peer in PEERS[:-1]
                    if (found := samples.median(ranks, start, peer, number)) is not None
                }
                own = samples.median(ranks, start, LAZYFX, number)
                if own is not None and others:
                    best = min(others, key=others.__getitem__)
                    verdict = "met" if own <= others[best] else "MISSED"
                    lines.append(
                        f"{verdict}: ranks {ranks}, {start}, {what}: {own:.1f} s, "
                        f"{own / others[best]:.2f} of the best other ({best})"
                    )
            if runs := samples.of(ranks, start, LAZYFX):
                compiles = sorted({run.compiles for run in runs})
                wanted = 0 if start == WARM else 1
                verdict = "met" if compiles == [wanted] else "MISSED"
                shown = "/".join(map(str, compiles))
                lines.append(f"{verdict}: ranks {ranks}, {start}: compiles {shown} (goal {wanted})")
    return lines


def _first_step(sample: Sample) -> float:
    return sample.first_step


def _all_cpu(sample: Sample) -> float:
    return sample.all_cpu


def _spread(numbers: Sequence[float]) -> str:
    middle = f"{statistics.median(numbers):.1f}"
    return middle if len(numbers) < 2 else f"{middle} ({min(numbers):.1f}-{max(numbers):.1f})"
