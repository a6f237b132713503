"""`python -m lazyfx_server.security.allowed [--write]`: compares the table with this torch."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from lazyfx_server.security import allowed


def main(arguments: list[str]) -> int:
    """Print what is new and what is gone; 1 when there is something to review.

    Args:
        arguments: "--write" writes the table, for a person to review its diff.
    """
    path = Path(allowed.__file__).with_name("targets.json")
    found = allowed.collect()
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    changes = 0
    for kind, names in found.items():
        before = set(known.get(kind, ()))
        for mark, changed in (("+", set(names) - before), ("-", before - set(names))):
            for name in sorted(changed):
                changes += 1
                sys.stdout.write(f"{mark} {kind}: {name}\n")
    if "--write" in arguments:
        table = {"torch": allowed._release(), **found}  # noqa: SLF001 - the same package
        path.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
        return 0
    sys.stdout.write(f"{changes} names differ\n")
    return 1 if changes else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
