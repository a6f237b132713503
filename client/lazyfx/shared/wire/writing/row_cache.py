"""Caches serialized rows across graphs, by what they are built from.

Calls like `view(x, [2, 64, 768])` and tensor descriptions recur in every graph of a model and in
every model of a family. Only rows that refer to no other table are kept, so that they mean the same
in any message; users of a row fill in its one index (its target or its device).
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

# About 4 MB at most.
_MAX_ROWS = 4096
_LONGEST_ROW = 256


class RowCache:
    """A bounded table of serialized rows. Keys contain only literals, no parts of a graph."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, bytes] = {}

    def get(self, key: Hashable) -> bytes | None:
        """The row of a key, if it is cached."""
        return self._rows.get(key)

    def put(self, key: Hashable, row: bytes) -> None:
        """Cache a row. A full cache is cleared first."""
        if len(row) > _LONGEST_ROW:
            return
        if len(self._rows) >= _MAX_ROWS:
            self._rows.clear()
        self._rows[key] = row


CALLS: Final = RowCache()
TENSORS: Final = RowCache()
