"""Checks the arguments of calls: how they are spelled, and in which order they name rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.arguments.argument_kind import check
from lazyfx.shared.wire.canonical.call_references import CallKey, call_references
from lazyfx.shared.wire.canonical.literal_rules import (
    MAX_ROWS,
    check_shape,
    check_target,
)
from lazyfx.shared.wire.targets.allow_table import sorts_dictionaries
from lazyfx.v1 import graph_pb2 as pb


class ArgumentChecker(ABC):
    """Checks calls and literals; whoever has the tables follows what they name.

    Attributes:
        sorts: Whether the call takes dictionaries sorted by key.
        spells: Whether it takes text such as "cuda:0" for a device.
        in_call: Whether it is a call at all.
    """

    def __init__(self) -> None:
        self.sorts = self.spells = self.in_call = False

    @abstractmethod
    def text(self, index: int) -> str:
        """Check a reference to a string, and read it."""

    @abstractmethod
    def use_target(self, index: int) -> None:
        """Check a reference to a target."""

    @abstractmethod
    def use_device(self, index: int) -> int:
        """Check a reference to a device; its slot."""

    @abstractmethod
    def use_expression(self, index: int, field: str) -> None:
        """Check a reference to an expression that is an argument."""

    @abstractmethod
    def use_group(self, number: int, field: str) -> None:
        """Check a reference to a process group."""

    def call(self, row: pb.Call, target: pb.Target | None, field: str) -> int:
        """Check how a call, its target and its arguments fit each other; the number of holes."""
        method = row.opcode == pb.OPCODE_CALL_METHOD
        if target is not None and (target.kind == pb.TARGET_KIND_METHOD) != method:
            raise DecodeError("the target does not fit the opcode", field=f"{field}.target")
        self.sorts = target is not None and not method and sorts_dictionaries(target)
        self.spells = self.sorts or (target is not None and method)
        return self.arguments(row, field)

    def arguments(self, row: pb.Call, field: str) -> int:
        """Check the arguments of a call; the number of their holes."""
        check_shape(row, field)
        self.in_call = True
        holes, previous = 0, ""
        for argument in row.args:
            holes += check(argument, self, f"{field}.args")
        for place, keyword in enumerate(row.kwargs):
            name = self.text(keyword.name)
            if place and name <= previous:
                raise DecodeError("not sorted by name, or duplicate names", field=f"{field}.kwargs")
            previous = name
            holes += check(keyword.value, self, f"{field}.kwargs")
        if holes and row.opcode in (pb.OPCODE_PLACEHOLDER, pb.OPCODE_GET_ATTR):
            raise DecodeError("operands where none are allowed", field=f"{field}.args")
        return holes

    def literal(self, argument: pb.Argument, field: str) -> None:
        """Check an argument that may hold no operands."""
        self.sorts = self.spells = self.in_call = False
        if check(argument, self, field):
            raise DecodeError("an operand where only literals are allowed", field=field)


class _StandaloneCallChecker(ArgumentChecker):
    """Checks one call without a message: its texts are given, and others check its devices."""

    def __init__(self, texts: dict[int, str]) -> None:
        super().__init__()
        self._texts = texts

    def text(self, index: int) -> str:
        return self._texts[index]

    def use_device(self, index: int) -> int:  # noqa: ARG002 - who has the table checks it
        return 0

    def use_target(self, index: int) -> None:
        raise DecodeError(f"target {index} is not at hand")

    def use_expression(self, index: int, field: str) -> None:
        raise DecodeError(f"expression {index} is not at hand", field=field)

    def use_group(self, number: int, field: str) -> None:
        raise DecodeError(f"group {number} is not at hand", field=field)


@lru_cache(maxsize=MAX_ROWS)
def known_call(key: CallKey) -> int | None:
    """The number of holes of a call that is right wherever it names these rows.

    None where something is wrong, which the message's own checker tells with its place.
    """
    call, references = pb.Call.FromString(key.call), call_references(key.call)
    texts = references.texts if references else ()
    checker = _StandaloneCallChecker(dict(zip(texts, map(bytes.decode, key.texts), strict=True)))
    try:
        check_target(call, "")
        return checker.call(call, pb.Target.FromString(key.target) if key.target else None, "")
    except DecodeError:
        return None
