"""Prints what the tests on a CUDA host need besides torch, which the host brings itself."""

from __future__ import annotations

import re
import sys
from pathlib import Path

# transformers is left out: it is for the demo, and wants packages of its own.
TOOLS = ("pytest", "pytest-asyncio", "pytest-timeout", "hatchling", "editables")


def main() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    # Without a TOML reader, which Python 3.10 lacks: each list ends at a bracket of its own.
    lists = [
        re.search(rf"^{name} = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
        for name in ("dependencies", "server")
    ]
    wanted = [
        line
        for found in lists
        if found
        for line in re.findall(r'^  "(.*)",', found[1], re.MULTILINE)
    ]
    needed = [one for one in wanted if not re.match(r"torch\b|lazyfx\b", one)]
    sys.stdout.write("\n".join([*needed, *TOOLS]) + "\n")


if __name__ == "__main__":
    main()
