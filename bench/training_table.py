"""The results of bench/training.py: samples, a table of them, and the goals."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.table import Table

LOCAL, DISK, MEGA, REDIS = "local cold", "local disk warm", "mega-cache", "redis"
COLD, WARM = "lazyfx cold", "lazyfx warm"
WAYS = (LOCAL, DISK, MEGA, REDIS, COLD, WARM)


@dataclass(frozen=True)
class Sample:
    """One run of all ranks.

    Attributes:
        way: One of `WAYS`.
        ranks: Number of parallel processes.
        first_step: Median seconds of the ranks to the end of the first step.
        cpu: CPU seconds of all ranks.
        server_cpu: CPU seconds of the server and its workers.
        compiles: Native compiles of the server.
    """

    way: str
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
    """All samples, by way and number of ranks."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._found: dict[tuple[int, str], list[Sample]] = {}
        for sample in samples:
            self._found.setdefault((sample.ranks, sample.way), []).append(sample)

    @property
    def ranks(self) -> list[int]:
        """Every number of ranks, in order."""
        return sorted({ranks for ranks, _ in self._found})

    def of(self, way: str, ranks: int) -> list[Sample]:
        """The runs of one way with that many ranks."""
        return self._found.get((ranks, way), [])

    def median(self, way: str, ranks: int, number: Callable[[Sample], float]) -> float | None:
        """The median of one number; None if nothing was measured."""
        runs = self.of(way, ranks)
        return statistics.median(map(number, runs)) if runs else None

    def ratio(
        self,
        over: tuple[str, int],
        under: tuple[str, int],
        number: Callable[[Sample], float],
    ) -> float | None:
        """One median divided by another, each of a way and a number of ranks."""
        above, below = self.median(*over, number), self.median(*under, number)
        return above / below if above is not None and below else None


def table(samples: Samples, title: str) -> Table:
    """One line for each way and number of ranks.

    Seconds to the first step are relative to a local cold run with as many ranks, CPU seconds to
    that of a single rank.
    """
    made = Table(title=title, title_justify="left")
    for heading in (
        "ranks", "way", "runs", "first step s", "/ cold", "CPU s", "server", "/ one cold",
        "compiles",
    ):  # fmt: skip
        made.add_column(heading, justify="left" if heading == "way" else "right")
    for ranks in samples.ranks:
        for way in WAYS:
            if runs := samples.of(way, ranks):
                made.add_row(*_row(samples, way, ranks, runs), end_section=way == WAYS[-1])
    return made


def _row(samples: Samples, way: str, ranks: int, runs: Sequence[Sample]) -> list[str]:
    server = samples.median(way, ranks, lambda s: s.server_cpu)
    return [
        str(ranks),
        way,
        str(len(runs)),
        _spread([run.first_step for run in runs]),
        _shown(samples.ratio((way, ranks), (LOCAL, ranks), _first_step)),
        _spread([run.all_cpu for run in runs]),
        f"{server:.1f}" if way in (COLD, WARM) and server is not None else "",
        _shown(samples.ratio((way, ranks), (LOCAL, 1), _all_cpu)),
        "/".join(sorted({str(run.compiles) for run in runs})) if way in (COLD, WARM) else "",
    ]


def goals(samples: Samples) -> list[str]:
    """The goals, the measurements, and whether the goals are met.

    Goals whose parts were not all measured are omitted.
    """
    lines = []
    most = max(samples.ranks, default=1)
    cold = samples.ratio((COLD, most), (LOCAL, 1), _all_cpu)
    if cold is not None:
        what = f"lazyfx cold, CPU of {most} ranks and server / CPU of one local cold rank"
        lines.append(_judged(what, cold, 1.15))
    for ranks in samples.ranks:
        for peer, most_allowed in ((LOCAL, 1 / 6), (MEGA, 1.0)):
            found = samples.ratio((WARM, ranks), (peer, ranks), _first_step)
            if found is not None:
                what = f"lazyfx warm, first step of {ranks} ranks / that of {peer}"
                lines.append(_judged(what, found, most_allowed))
    for ranks in samples.ranks:
        for way, wanted in ((COLD, 1), (WARM, 0)):
            if runs := samples.of(way, ranks):
                compiles = sorted({run.compiles for run in runs})
                verdict = "met" if compiles == [wanted] else "MISSED"
                shown = "/".join(map(str, compiles))
                lines.append(f"{verdict}: {way}, {ranks} ranks: compiles {shown} (goal {wanted})")
    return lines


def _judged(what: str, found: float, most: float) -> str:
    return f"{'met' if found <= most else 'MISSED'}: {what}: {found:.3f} (goal at most {most:.3f})"


def _first_step(sample: Sample) -> float:
    return sample.first_step


def _all_cpu(sample: Sample) -> float:
    return sample.all_cpu


def _shown(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}"


def _spread(numbers: Sequence[float]) -> str:
    middle = f"{statistics.median(numbers):.1f}"
    return middle if len(numbers) < 2 else f"{middle} ({min(numbers):.1f}-{max(numbers):.1f})"
