"""Count the graphs of torch.compile that a server compiles, and those that stay local, by reason.

    python -m conformance.remote [PATTERN ...] [--ways infer,train,...] [--calls 1]
                                 [--address HOST:PORT --native] [--every 1]
                                 [--seconds 120] [--record FILE]

The entries are those of torch's databases of operators, modules and exports (`op abs`, `module
nn_Linear`, `export cond_operands`), and of the zoo (`zoo gpt2`). Each call runs here, and through
torch.compile with a server; results, gradients and written inputs must be the same. With --native
a server that has been started with --native compiles each graph; otherwise the graphs come back to
be run, and what would keep a native compile away counts too. Exits with 1 if something differs.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from conformance.processes import run
from conformance.remote.entries import every_name
from conformance.remote.trying import BAD, WAYS, Counting, Finding
from lazyfx.cli.local_server import local_server

_CASES_A_PROCESS = 150
_PROGRESS = 50
_LONGEST_REASON = 160


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if nothing differs."""
    parser = argparse.ArgumentParser(prog="python -m conformance.remote", description=__doc__)
    parser.add_argument("patterns", nargs="*", help="names of entries, with *; all by default")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--calls", type=int, default=1, help="calls per operator and module")
    parser.add_argument("--every", type=int, default=1, help="only every n-th entry")
    parser.add_argument("--address", help="a server; a temporary one by default")
    parser.add_argument("--native", action="store_true", help="compile natively")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit per entry")
    parser.add_argument("--record", type=Path, help="append findings, and skip entries found there")
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    names = [name for name in every_name() if _wanted(name, options.patterns)][:: options.every]
    found = {name: made for name, made in _read(options.record).items() if name in set(names)}
    missing = [name for name in names if name not in found]
    with _server(options.address) as address:
        counting = Counting(
            address,
            options.ways.split(","),
            options.calls,
            "inductor" if options.native else "eager",
            options.seconds,
        )
        for number, (name, made) in enumerate(run(missing, counting, _CASES_A_PROCESS), 1):
            found[name] = made
            _say(console, made)
            if options.record:
                with options.record.open("a") as stream:
                    row = {"case": name, "found": [asdict(each) for each in made]}
                    stream.write(json.dumps(row) + "\n")
            if number % _PROGRESS == 0:
                console.print(f"{number} of {len(missing)}: {name}", markup=False)
    return _conclude(console, [each for made in found.values() for each in made])


def _wanted(name: str, patterns: Sequence[str]) -> bool:
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


@contextlib.contextmanager
def _server(address: str | None) -> Iterator[str]:
    if address:
        yield address
        return
    with local_server() as server:
        yield server.address


def _read(record: Path | None) -> dict[str, list[Finding]]:
    if record is None or not record.exists():
        return {}
    rows = [json.loads(line) for line in record.read_text().splitlines()]
    return {row["case"]: [Finding(**each) for each in row["found"]] for row in rows}


def _say(console: Console, made: Iterable[Finding]) -> None:
    for each in made:
        where = f"{each.case} {each.way} {each.call}"
        if each.outcome in BAD:
            console.print(f"{each.outcome}: {where}: {each.note}", markup=False, soft_wrap=True)
        for reason in filter(None, each.graphs):
            console.print(f"local: {where}: {reason}", markup=False, soft_wrap=True)


def _conclude(console: Console, found: Sequence[Finding]) -> int:
    table = Table("entries", "way", "calls", "graphs", "remote", "share")
    groups = sorted({(each.case.partition(" ")[0], each.way) for each in found if each.way})
    for kind, way in groups:
        own = [e for e in found if e.case.partition(" ")[0] == kind and e.way == way and e.graphs]
        graphs = [reason for each in own for reason in each.graphs]
        remote = graphs.count("")
        share = f"{remote / len(graphs):.2%}" if graphs else ""
        table.add_row(kind, way, str(len(own)), str(len(graphs)), str(remote), share)
    console.print(table)
    outcomes = Counter(each.outcome for each in found)
    console.print(", ".join(f"{count} {outcome}" for outcome, count in outcomes.most_common()))
    reasons = Counter(_class(reason) for each in found for reason in each.graphs if reason)
    for reason, count in reasons.most_common():
        console.print(f"{count} local: {reason}", markup=False, soft_wrap=True)
    _say(console, [each for each in found if each.outcome in BAD])
    return 1 if any(each.outcome in BAD for each in found) else 0


def _class(reason: str) -> str:
    """A reason without the names in it."""
    return re.sub(r"'[^']*'", "'...'", reason)[:_LONGEST_REASON]


if __name__ == "__main__":
    sys.exit(main())
