"""Takes one architecture through its captures and notes what happened."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

import zoo
from zoo.architecture import Architecture
from zoo.captures import WAYS
from zoo.check import Passage, pass_through

_LONGEST_REASON = 160


@dataclass(frozen=True)
class Cell:
    """The result of one capture of one model.

    Attributes:
        passages: The graphs that passed.
        refusal: Why the wire refused a captured graph; empty if it did not.
        capture_error: Why torch could not capture the model; empty if it could.
    """

    passages: tuple[Passage, ...] = ()
    refusal: str = ""
    capture_error: str = ""

    @property
    def broken(self) -> bool:
        """Whether a captured graph did not pass."""
        return bool(self.refusal)

    @property
    def came_through(self) -> bool:
        """Whether all captured graphs passed."""
        return bool(self.passages) and not self.refusal

    def __str__(self) -> str:
        """The text of the cell in the table."""
        if self.refusal:
            return f"REFUSED: {self.refusal}"
        if self.capture_error:
            return f"no capture: {self.capture_error}"
        nodes = sum(p.nodes for p in self.passages)
        size = sum(p.body_bytes for p in self.passages) / 1024
        graphs = f"{len(self.passages)} graphs, " if len(self.passages) > 1 else ""
        return f"ok: {graphs}{nodes} nodes, {size:.1f} KiB"


def prepare() -> None:
    """Make a process ready for captures, which warn and log at length."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


def run_named(asked: tuple[str, Sequence[str]]) -> tuple[str, dict[str, Cell]]:
    """The name of an architecture, and its cells."""
    name, ways = asked
    return name, run(zoo.ARCHITECTURES[name], ways)


def run(architecture: Architecture, ways: Iterable[str]) -> dict[str, Cell]:
    """A cell for each way of capturing."""
    return {way: _cell(architecture, way) for way in ways}


def _cell(architecture: Architecture, way: str) -> Cell:
    model, example = architecture.build()
    try:
        found = WAYS[way](model, example)
    except Exception as error:  # noqa: BLE001 - captures raise what they like
        return Cell(capture_error=_reason(error))
    if not found:
        return Cell(capture_error="the capture has no graph")
    passages = []
    for capture in found:
        try:
            passages.append(pass_through(capture))
        except Exception as error:  # noqa: BLE001 - whatever went wrong, it did not come through
            return Cell(tuple(passages), refusal=f"{capture.label}: {_reason(error)}")
    return Cell(tuple(passages))


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])}"[:_LONGEST_REASON]
