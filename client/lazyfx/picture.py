"""Pictures that show themselves."""

from __future__ import annotations

from pathlib import Path


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
