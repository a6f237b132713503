"""`python -m lazyfx_server.security.allowed [--write]`: compares the tables with this torch."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lazyfx_server.security import allowed

_FOLDER = Path(allowed.__file__).parent


def main(arguments: list[str]) -> int:
    """Print targets that are new, gone or changed; returns 1 if there is something to review.

    Args:
        arguments: "--write" writes the tables, for review of their diff.
    """
    targets = allowed.collect()
    signatures = allowed.collect_signatures(targets)
    known = _read("targets.json")
    signed = allowed.resolved(_read("signatures.json"))
    changes = 0
    for kind, names in targets.items():
        changes += _tell(kind, _of_this_python(known.get(kind, ())), set(names))
    for kind, rows in signatures.items():
        before = signed.get(kind, {})
        before = {name: before[name] for name in _of_this_python(before)}
        changes += _tell(f"signature of {kind}", _lines(before), _lines(rows))
    if "--write" in arguments:
        release = allowed._release()  # noqa: SLF001 - the same package
        _write("targets.json", {"torch": release, **targets})
        _write("signatures.json", allowed.shortened(signatures))
        return 0
    sys.stdout.write(f"{changes} lines differ\n")
    return 1 if changes else 0


def _of_this_python(names: Iterable[str]) -> set[str]:
    """Without names that only newer Python versions have: math.cbrt and exp2 are new in 3.11."""
    return {
        name
        for name in names
        if not name.startswith("math.") or hasattr(math, name.removeprefix("math."))
    }


def _lines(rows: Mapping[str, list[str]]) -> set[str]:
    return {f"{name}{text}" for name, texts in rows.items() for text in texts or ["(no signature)"]}


def _tell(kind: str, before: set[str], now: set[str]) -> int:
    """Print the differences; returns their number."""
    for mark, changed in (("+", now - before), ("-", before - now)):
        for line in sorted(changed):
            sys.stdout.write(f"{mark} {kind}: {line}\n")
    return len(before ^ now)


def _read(name: str) -> dict[str, Any]:
    path = _FOLDER / name
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    return found


def _write(name: str, table: Mapping[str, Any]) -> None:
    text = json.dumps(table, indent=1) + "\n"
    (_FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
