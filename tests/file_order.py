"""Which process of a test run takes which files, and in which order.

The files that take longest are the first to run, so that no process is left with one of them when
the others have finished. `python tests/file_order.py REPORT...` prints the table below anew, from
the files that pytest writes with `--junitxml`.
"""

from __future__ import annotations

import sys
from collections import Counter
from typing import Final
from xml.etree import ElementTree

# Files that capture the same graphs, which takes longer than to test them: one process runs them.
_TOGETHER: Final = (
    ("lazy/test_pickling", "lazy/test_other_formats", "lazy/test_python_files"),
    ("passes/test_library", "passes/test_real_models", "passes/test_casts", "passes/test_verify"),
)

# Seconds of each file on two cores, from _LEAST_SECONDS on.
_LEAST_SECONDS: Final = 7
_SECONDS: Final = {}

_FIRST: Final = {file: files[0] for files in _TOGETHER for file in files}


def unit(node_id: str) -> str:
    """The name of what one process runs as a whole: the file of a test, or the first of several."""
    file = node_id.partition("::")[0].removeprefix("tests/").removesuffix(".py")
    return _FIRST.get(file, file)


def seconds(unit: str) -> int:
    """How long a unit takes; 0 if that is not long."""
    return sum(_SECONDS.get(file, 0) for file in {unit, *_FIRST} if _FIRST.get(file, file) == unit)


def _measured(reports: list[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            module = str(case.get("classname")).partition(".Test")[0]
            file = module.removeprefix("tests.").replace(".", "/")
            found[file] += float(str(case.get("time")))  # type: ignore[assignment]
    return found


if __name__ == "__main__":
    for file, measured in _measured(sys.argv[1:]).most_common():
        if measured >= _LEAST_SECONDS:
            sys.stdout.write(f'    "{file}": {measured:.0f},\n')
