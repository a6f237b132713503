"""Save graphs in every format, and call what was saved in processes that have torch alone.

    python -m conformance.saved [PATTERN ...] [--formats pickle,package,...] [--ways make_fx,...]
                                [--seconds 300] [--record FILE]

The cases are torch's own operators and modules (`op abs`, `module Linear`) and the captures of the
zoo (`zoo gpt2 dynamo`). A saved file must compute what its graph computes, in two calls, outputs
and written inputs alike; or saving must be refused with a reason. Prints what differs, and a table.
Exits with 1 if something differs, or failed in another way.

The record keeps each finding, so that a run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conformance.processes import run
from conformance.saved.formats import FORMATS
from conformance.saved.graphs import OPERATOR_WAYS, every_name
from conformance.saved.trying import BAD, Finding, Saving

_CASES_A_PROCESS = 25
_PROGRESS = 25


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m conformance.saved", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="names of cases, with *; all by default")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--ways", default=",".join(OPERATOR_WAYS), help="captures of operators")
    parser.add_argument("--seconds", type=float, default=300.0, help="time limit per case")
    parser.add_argument("--record", type=Path, help="append findings, and skip cases found there")
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    formats = options.formats.split(",")
    names = [name for name in every_name() if _wanted(name, options.patterns)]
    found = {name: made for name, made in _read(options.record).items() if name in set(names)}
    missing = [name for name in names if name not in found]
    saving = Saving(options.seconds, formats, options.ways.split(","))
    begun = time.monotonic()
    for number, (name, made) in enumerate(run(missing, saving, _CASES_A_PROCESS), 1):
        found[name] = made
        _say(console, made)
        if options.record:
            with options.record.open("a") as stream:
                row = {"case": name, "found": [asdict(each) for each in made]}
                stream.write(json.dumps(row) + "\n")
        if number % _PROGRESS == 0:
            seconds = time.monotonic() - begun
            console.print(f"{number} of {len(missing)} cases in {seconds:.0f} s: {name}")
    return _conclude(console, [each for made in found.values() for each in made])


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _read(record: Path | None) -> dict[str, list[Finding]]:
    if record is None or not record.exists():
        return {}
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    return {row["case"]: [Finding(**each) for each in row["found"]] for row in rows}


def _say(console: Console, made: Iterable[Finding]) -> None:
    for each in made:
        if each.outcome in BAD:
            where = f"{each.case} {each.graph} {each.format}"
            console.print(f"{each.outcome}: {where}: {each.note}", markup=False, soft_wrap=True)


def _conclude(console: Console, found: Sequence[Finding]) -> int:
    counts = Counter((each.format, each.outcome) for each in found)
    table = Table("format", "outcome", "files")
    for (kind, outcome), count in sorted(counts.items()):
        table.add_row(kind, outcome, str(count))
    console.print(table)
    bad = [each for each in found if each.outcome in BAD]
    _say(console, bad)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
