"""The measurements of bench/lazy.py as a table."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table


@dataclass(frozen=True)
class Result:
    """One graph, all rounds; seconds of CPU time.

    Attributes:
        graph: Model and capture.
        nodes: Number of nodes.
        cse_changed: Whether CSEPass changed the graph and returned a plain module.
        plain, flag, lazy, ours: Samples of the ways.
        asked, done: Requested and performed recompiles of our way.
        plain_done, flag_done: Recompiles of the others.
    """

    graph: str
    nodes: int
    cse_changed: bool
    plain: list[float]
    flag: list[float]
    lazy: list[float]
    ours: list[float]
    asked: int
    done: int
    plain_done: int
    flag_done: int

    @property
    def samples(self) -> tuple[list[float], ...]:
        """Those of each way."""
        return self.plain, self.flag, self.lazy, self.ours

    @property
    def against_plain(self) -> float:
        """Median of the rounds' ratios: plain over ours."""
        return statistics.median(self.ratios)

    @property
    def ratios(self) -> list[float]:
        """Plain over ours in each round."""
        return [a / b for a, b in zip(self.plain, self.ours, strict=True)]

    @property
    def quartiles(self) -> tuple[float, float]:
        """The first and the third quartile of the rounds' ratios."""
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return first, third

    @property
    def against_flag(self) -> float:
        """Median of the rounds' ratios: torch's flag over ours."""
        return statistics.median(a / b for a, b in zip(self.flag, self.ours, strict=True))


def table(results: Sequence[Result]) -> Table:
    """One row per graph; medians in milliseconds of CPU time."""
    made = Table(title="milliseconds of CPU time, medians; ratios within rounds")
    for heading in ("graph", "nodes", "CSE changed", "plain", "flag", "lazy", "ours",
                    "recompiles plain", "flag", "ours: done/asked", "plain/ours", "quartiles",
                    "flag/ours"):  # fmt: skip
        made.add_column(heading, justify="left" if heading == "graph" else "right")
    for r in results:
        made.add_row(
            r.graph,
            str(r.nodes),
            "yes" if r.cse_changed else "no",
            *(f"{statistics.median(s) * 1e3:.1f}" for s in r.samples),
            str(r.plain_done),
            str(r.flag_done),
            f"{r.done}/{r.asked}",
            f"{r.against_plain:.2f}",
            "{:.1f}-{:.1f}".format(*r.quartiles),
            f"{r.against_flag:.2f}",
        )
    return made


def summary(results: Sequence[Result]) -> list[str]:
    """The totals to which the targets refer."""
    plain = sorted(r.against_plain for r in results)
    changed = sorted(r.against_flag for r in results if r.cse_changed)
    asked, done = sum(r.asked for r in results), sum(r.done for r in results)
    lines = [
        f"against plain: median {statistics.median(plain):.2f}x, least {plain[0]:.2f}x, "
        f"most {plain[-1]:.2f}x over {len(plain)} graphs (target 10x, never below 4x)",
        f"recompiles done/asked: {done}/{asked} = {done / max(1, asked):.2%} (target 1.1 %)",
    ]
    if changed:
        lines.append(
            f"against torch's flag where CSE changed the graph: median "
            f"{statistics.median(changed):.2f}x, least {changed[0]:.2f}x over {len(changed)} "
            "graphs (target 2x)"
        )
    return lines
