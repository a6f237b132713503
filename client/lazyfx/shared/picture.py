"""Pictures that display themselves."""

from __future__ import annotations

from pathlib import Path
from typing import Final

STYLE: Final = (
    "text{font:11px ui-monospace,monospace;fill:#1b1f24}"
    ".s{font-size:9px;fill:#57606a}"
    "rect{stroke:#8c959f;rx:6}"
    "path{fill:none;stroke:#8c959f;stroke-width:1}"
)
"""The style sheet of every drawing: a client accepts no other."""


class Picture(str):
    """SVG text that displays itself in a notebook."""

    __slots__ = ()

    def _repr_svg_(self) -> str:
        return str(self)

    def save(self, path: str | Path) -> Path:
        """Write the picture to a file and return its path."""
        target = Path(path)
        target.write_text(self, encoding="utf-8")
        return target
