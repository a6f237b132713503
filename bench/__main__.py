"""`python -m bench`: what the service costs and saves compared with its peers, as one table."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import tempfile
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench import codec, hit, miss, passes, raw_hits
from bench.cores import apart
from bench.graphs import gpt2_cases
from bench.rounds import Row, spread
from bench.servers import running

PARTS = ("hit", "passes", "miss", "wire")

_RAW_CALLS = 1920


@dataclass(frozen=True)
class Effort:
    """How often each comparison is repeated."""

    rounds: int
    calls: int
    slow_rounds: int


QUICK = Effort(rounds=5, calls=60, slow_rounds=3)
FULL = Effort(rounds=25, calls=120, slow_rounds=9)


def main() -> None:
    """Measure, print the table, and optionally write the numbers to a file."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="fewer rounds: takes a minute, with more noise"
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers to this file"
    )
    parser.add_argument("--only", choices=PARTS, action="append", help="measure only this part")
    options = parser.parse_args()
    effort = QUICK if options.quick else FULL
    rows = measure(effort, options.only or PARTS)
    console = Console(width=None if Console().is_terminal else 130)
    console.print(table(rows))
    if options.json:
        facts = {**_versions(), "rows": [row.figures() for row in rows]}
        options.json.write_text(json.dumps(facts, indent=1) + "\n")


def measure(effort: Effort, parts: tuple[str, ...] | list[str]) -> list[Row]:
    """The rows of the chosen parts."""
    rows: list[Row] = []
    cases = gpt2_cases() if set(parts) - {"wire"} else []
    with tempfile.TemporaryDirectory() as folder, running(Path(folder)) as servers:
        if "hit" in parts:
            _say("hits")
            case = cases[0]
            with apart(servers.pids):
                rows += asyncio.run(hit.measure(case, servers, effort.rounds, effort.calls))
                rows += asyncio.run(raw_hits.measure(case, servers, effort.rounds, _RAW_CALLS))
                rows += hit.measure_blocking(case, servers, effort.rounds, effort.calls)
                check = hit.check_seconds(case)
            rows.append(Row("(a) hit", "of that: has the graph changed?", [check]))
        for case in cases:
            if "passes" in parts:
                _say(f"passes, {case.name}")
                rows += passes.measure(case, effort.slow_rounds)
            if "miss" in parts:
                _say(f"misses, {case.name}")
                rows += miss.measure(case, servers.lazyfx, effort.slow_rounds)
    if "wire" in parts:
        _say("wire format")
        rows += codec.measure(effort.slow_rounds)
    return sorted(rows, key=lambda row: row.section)


def table(rows: list[Row]) -> Table:
    """All rows; a ratio is the median of the rounds' ratios."""
    facts = _versions()
    title = ", ".join(f"{name} {value}" for name, value in facts.items())
    result = Table(title=title, title_justify="left", caption_justify="left")
    for heading in ("", "what"):
        result.add_column(heading)
    for heading in ("unit", "min", "p25", "median", "p75", "ratio", "p25-p75", "target", ""):
        result.add_column(heading, justify="right")
    section = ""
    for row in rows:
        if section and row.section != section:
            result.add_section()
        first = row.section if row.section != section else ""
        section = row.section
        factor = 1e3 if row.unit == "ms" else 1.0
        numbers = [_number(value * factor) for value in spread(row.samples)]
        ratio, around, target = "", "", ""
        if row.ratio is not None:
            _, low, _, high = spread(row.ratios)
            ratio, around = f"{row.ratio:.2f}", f"{low:.2f}-{high:.2f}"
        if row.target is not None:
            target = f"{'>=' if row.at_least else '<='} {row.target:.2f}"
        result.add_row(first, row.name, row.unit, *numbers, ratio, around, target, row.verdict)
    return result


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}" if value >= 100 else f"{value:.3f}"


def _versions() -> dict[str, str]:
    names = ("lazyfx", "torch", "grpcio", "protobuf", "uvloop")
    return {
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "cores": str(os.cpu_count()),
    }


def _say(what: str) -> None:
    Console(stderr=True).print(f"bench: {what}", style="dim")


if __name__ == "__main__":
    main()
