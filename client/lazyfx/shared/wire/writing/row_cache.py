"""Serialized rows by what they are made from, remembered from graph to graph.

Calls like `view(x, [2, 64, 768])` and tensor descriptions come again in every graph of a
model, and in every model of a family. Only rows that name no other table are kept, so that
they mean the same in any message; the index that such a row does have (its target, its
device) is filled in by whoever uses it.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final

# Together some 4 MB at most.
_MAX_ROWS = 4096
_LONGEST_ROW = 256


class RowCache:
    """A bounded table of serialized rows. Keys hold literals only, nothing of a graph."""

    def __init__(self) -> None:
        self._rows: dict[Hashable, bytes] = {}

    def get(self, key: Hashable) -> bytes | None:
        """The row of a key, if it is known."""
        return self._rows.get(key)

    def put(self, key: Hashable, row: bytes) -> None:
        """Remember a row. When there are too many, all are forgotten."""
        if len(row) > _LONGEST_ROW:
            return
        if len(self._rows) >= _MAX_ROWS:
            self._rows.clear()
        self._rows[key] = row


CALLS: Final = RowCache()
TENSORS: Final = RowCache()
