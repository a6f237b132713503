"""Targets that `user_targets` added to the allow-table, process-wide; set when a process starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

FUNCTIONS: Final[dict[str, Callable[..., Any]]] = {}
METHODS: Final[set[str]] = set()
