"""Arguments with holes: literals made once for a call, operands put in for each node."""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

from torch.fx import Node

Operands = tuple[Node, ...]
Build = Callable[[Operands], Any]


class Holes:
    """Counts holes in the order in which operands fill them."""

    def __init__(self) -> None:
        self.count = 0

    def next(self) -> Part:
        """One more hole."""
        place = self.count
        self.count += 1
        return Part(itemgetter(place), place)


class Part(NamedTuple):
    """Something made from operands; `place` is set for a bare hole."""

    build: Build
    place: int | None = None


def sequence(items: list[Any], make: Callable[[list[Any]], Any]) -> Any:
    """`make` of the items at once, or for each node if there are parts among them."""
    if not any(type(item) is Part for item in items):
        return make(items)
    fill = _filler(items)
    return Part(lambda operands: make(fill(operands)))


def _filler(items: list[Any]) -> Callable[[Operands], list[Any]]:
    """Copies `items` with their parts built."""
    parts = [(i, item.build) for i, item in enumerate(items) if type(item) is Part]

    def fill(operands: Operands) -> list[Any]:
        filled = items.copy()
        for i, build in parts:
            filled[i] = build(operands)
        return filled

    return fill


def positional(args: list[Any], holes: int) -> tuple[Any, ...] | Build:
    """Makes the positional arguments; a tuple where it only comes behind the operands."""
    leading = 0
    while leading < len(args) and type(args[leading]) is Part and args[leading].place is not None:
        leading += 1
    rest = tuple(args[leading:])
    if any(type(item) is Part for item in rest):
        fill = _filler(args)
        return lambda operands: tuple(fill(operands))
    # Nearly all calls: operands first, then literals.
    return rest if leading == holes else lambda operands: operands[:leading] + rest


def keywords(kwargs: dict[str, Any]) -> Build | None:
    """Makes the keyword arguments; None where there are none."""
    if not kwargs:
        return None
    names, fill = list(kwargs), _filler(list(kwargs.values()))
    return lambda operands: dict(zip(names, fill(operands), strict=True))
