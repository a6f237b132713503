"""Run torch's own databases of operators and modules through a server.

    python -m conformance [PATTERN ...] [--ways make_fx,export,...] [--calls 2]
                          [--dtypes float32,int64,bool] [--seconds 60]
                          [--seconds-in-all 5400] [--json FILE]

Each case (`op abs`, `module nn.Linear`) is captured in each way. Each graph is sent to a temporary
server, goes through its checks and the passes of the pipeline `inference`, and must compute the
same as the original graph under the same seed. Prints a table of the graphs that passed, and
refusals by reason. Exits with 1 if something differs, failed without a reason, or was refused for a
reason that docs/coverage.md does not list.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conformance import reasons
from conformance.captures import WAYS
from conformance.cases import DTYPES
from conformance.processes import run
from conformance.run import BAD, Asked, Finding, every_case
from lazyfx.cli.local_server import local_server

_CALLS = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if everything passed or was refused for a listed reason."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="names of cases, with *; all by default")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--calls", type=int, default=_CALLS, help="calls per case")
    parser.add_argument(
        "--dtypes",
        default=",".join(DTYPES),
        help="dtypes; the first one that a case supports is used",
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit per case")
    parser.add_argument("--seconds-in-all", type=float, default=5400.0)
    parser.add_argument(
        "--json", type=Path, help="append findings, and skip cases already in the file"
    )
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    found = _read(options.json)
    known = {each.case for each in found}
    names = [case.name for case in every_case() if _wanted(case.name, options.patterns)]
    missing = [name for name in names if name not in known]
    end = time.monotonic() + options.seconds_in_all
    with local_server() as server:
        ways = options.ways.split(",")
        asked = Asked(
            server.address, ways, options.calls, options.seconds, options.dtypes.split(",")
        )
        for name, made in run(missing, asked):
            found += made
            _say(console, made)
            if options.json:
                with options.json.open("a") as stream:
                    stream.writelines(json.dumps(asdict(each)) + "\n" for each in made)
            if time.monotonic() > end:
                console.print(f"out of time after {name}")
                break
    found = [each for each in found if each.case in set(names)]
    # With other arguments, some listed cases are not tried.
    chosen = (options.ways, options.dtypes, options.calls)
    whole = not options.patterns and chosen == (",".join(WAYS), ",".join(DTYPES), _CALLS)
    whole = whole and {each.case for each in found} == {case.name for case in every_case()}
    return _conclude(console, found, whole=whole)


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(file: Path | None) -> list[Finding]:
    if file is None or not file.exists():
        return []
    return [Finding(**json.loads(line)) for line in file.read_text().splitlines()]


def _say(console: Console, made: Sequence[Finding]) -> None:
    for each in made:
        if each.outcome in {*BAD, "refused"}:
            where = f"{each.case} {each.way} {each.call} {each.passes}"
            console.print(f"{each.outcome}: {where}: {each.note}", markup=False, soft_wrap=True)


def _conclude(console: Console, found: Sequence[Finding], *, whole: bool) -> int:
    known = reasons.read()
    counts = Counter((each.outcome, each.way, each.passes) for each in found)
    table = Table("outcome", "capture", "passes", "graphs")
    for (outcome, way, passes), count in sorted(counts.items()):
        table.add_row(outcome, way, passes, str(count))
    console.print(table)
    for reason in known:
        count = sum(map(reason.explains, found))
        if count:
            console.print(f"{count} refused, as listed: {reason.words}", markup=False)
    unlisted = reasons.unexplained(found, known)
    for each in unlisted:
        console.print(f"refused, not listed: {each.case} {each.way}: {each.note}", markup=False)
    old = reasons.outdated(found, known) if whole else []
    for reason in old:
        console.print(f"listed, but not refused: {reason}", markup=False)
    bad = [each for each in found if each.outcome in BAD]
    _say(console, bad)
    return 1 if unlisted or old or bad else 0


if __name__ == "__main__":
    sys.exit(main())
