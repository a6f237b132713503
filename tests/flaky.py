"""Runs tests several times and names those that do not always end the same way.

    python tests/flaky.py [--times 3] [pytest arguments]

Also names the 20 slowest, by their medians.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree as Xml

SLOWEST = 20


def run(number: int, folder: Path, arguments: list[str]) -> dict[str, tuple[str, float]]:
    """How each test ended, and its seconds."""
    report = folder / f"{number}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2"]
    subprocess.run([*command, f"--junitxml={report}", *arguments], check=False)
    if not report.exists():
        raise SystemExit("pytest wrote no report; see its output above")
    ended = {}
    # Written by pytest just now.
    for case in Xml.parse(report).iter("testcase"):
        how = next((child.tag for child in case if child.tag != "properties"), "passed")
        name = f"{case.get('classname', '').replace('.', '/')}::{case.get('name')}"
        ended[name] = ("passed" if how.startswith("system-") else how, float(case.get("time", 0)))
    return ended


def main() -> int:
    """Run, compare, print; 1 if a test is flaky."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--times", type=int, default=3)
    known, arguments = parser.parse_known_args()
    ends: dict[str, list[str]] = defaultdict(list)
    seconds: dict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(known.times):
            for name, (how, took) in run(number, Path(folder), arguments).items():
                ends[name].append(how)
                seconds[name].append(took)
    medians = {name: statistics.median(took) for name, took in seconds.items()}
    sys.stdout.write(f"\nThe slowest {SLOWEST}, median seconds:\n")
    for name in sorted(medians, key=medians.__getitem__, reverse=True)[:SLOWEST]:
        sys.stdout.write(f"{medians[name]:8.1f}  {name}\n")
    flaky = {name: how for name, how in ends.items() if len(set(how)) > 1}
    sys.stdout.write(f"\n{len(flaky)} of {len(ends)} tests did not always end the same way\n")
    for name, each in sorted(flaky.items()):
        sys.stdout.write(f"  {name}: {', '.join(each)}\n")
    return 1 if flaky else 0


if __name__ == "__main__":
    sys.exit(main())
