"""The table of the zoo, as lines and as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import torch
import transformers

import lazyfx
import zoo
from zoo.run import Cell

Rows = Mapping[str, Mapping[str, Cell]]


def plain(name: str, row: Mapping[str, Cell]) -> str:
    """One model, a line for each capture."""
    return "\n".join([name, *(f"  {way:<9}{cell}" for way, cell in row.items())])


def markdown(rows: Rows, ways: Sequence[str]) -> str:
    """The page docs/zoo.md."""
    return "todo"
