"""What `user_targets` added to the allow-table: set when a process starts, for all that it does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {}
METHODS: Final[set[str]] = set()
