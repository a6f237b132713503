"""Checks the arguments of calls: how they are spelled, and in which order they name rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import lru_cache
from typing import Any

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.canonical.call_references import CallKey, call_references
from lazyfx.shared.wire.canonical.literal_rules import (
    MAX_ROWS,
    check_float,
    check_keys,
    check_shape,
    check_target,
)
from lazyfx.shared.wire.format import DEVICE_TEXT, MAX_DEPTH
from lazyfx.shared.wire.targets.allow_table import sorts_dictionaries
from lazyfx.v1 import graph_pb2 as pb

_KEY_RANKS = {"boolean": 0, "integer": 1, "text": 2}


class ArgumentChecker(ABC):
    """Checks calls and literals; whoever has the tables follows what they name."""

    def __init__(self) -> None:
        # Whether the call takes dictionaries sorted by key, and text such as "cuda:0" for a
        # device; whether it is a call at all.
        self._sorts = self._spells = self._calls = False

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
        self._sorts = target is not None and not method and sorts_dictionaries(target)
        self._spells = self._sorts or (target is not None and method)
        return self.arguments(row, field)

    def arguments(self, row: pb.Call, field: str) -> int:
        """Check the arguments of a call; the number of their holes."""
        check_shape(row, field)
        self._calls = True
        holes, previous = 0, ""
        for argument in row.args:
            holes += self._argument(argument, f"{field}.args", 0)
        for place, keyword in enumerate(row.kwargs):
            name = self.text(keyword.name)
            if place and name <= previous:
                raise DecodeError("not sorted by name, or duplicate names", field=f"{field}.kwargs")
            previous = name
            holes += self._argument(keyword.value, f"{field}.kwargs", 0)
        if holes and row.opcode in (pb.OPCODE_PLACEHOLDER, pb.OPCODE_GET_ATTR):
            raise DecodeError("operands where none are allowed", field=f"{field}.args")
        return holes

    def literal(self, argument: pb.Argument, field: str) -> None:
        """Check an argument that may hold no operands."""
        self._sorts = self._spells = self._calls = False
        if self._argument(argument, field, 0):
            raise DecodeError("an operand where only literals are allowed", field=field)

    def _argument(self, argument: pb.Argument, field: str, depth: int) -> int:
        """Check an argument; the number of its holes."""
        kind = argument.WhichOneof("kind")
        if kind == "operand":
            return 1
        if kind in ("integer", "boolean", "none", "ellipsis"):
            return 0
        if kind == "text":
            text = self.text(argument.text)
            if self._spells and DEVICE_TEXT.match(text):
                raise DecodeError("devices must not be encoded as text", field=field)
            return 0
        if kind == "size" and self._calls:  # torch.fx makes tuples of them
            raise DecodeError("sizes must be encoded as tuples", field=field)
        if kind in ("list", "tuple", "size"):
            return self._items(getattr(argument, kind).items, field, depth)
        return self._rare_argument(kind, argument, field, depth)

    def _items(self, items: Any, field: str, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        return sum(self._argument(item, field, depth + 1) for item in items)

    def _rare_argument(
        self, kind: str | None, argument: pb.Argument, field: str, depth: int
    ) -> int:
        if kind == "floating":
            check_float(argument.floating, field)
        elif kind == "complex":
            check_float(argument.complex.real, field)
            check_float(argument.complex.imaginary, field)
        elif kind == "expression":
            self.use_expression(argument.expression, field)
        elif kind == "target":
            self.use_target(argument.target)
        elif kind in ("device", "device_text", "process_group"):
            self._place(kind, argument, field)
        elif kind == "slice":
            row = argument.slice
            return self._items((row.start, row.stop, row.step), field, depth)
        elif kind == "dictionary":
            return self._dictionary(argument.dictionary.entries, field, depth)
        elif kind in ("dtype", "layout", "memory_format"):
            if not getattr(argument, kind):
                raise DecodeError(f"an unspecified {kind}", field=field)
        else:
            raise DecodeError("an argument without a kind", field=field)
        return 0

    def _place(self, kind: str, argument: pb.Argument, field: str) -> None:
        if kind == "process_group":
            self.use_group(argument.process_group, field)
            return
        slot = self.use_device(getattr(argument, kind))
        if kind == "device_text" and not (self._spells and slot):
            raise DecodeError("this device must be encoded as text", field=field)

    def _dictionary(self, entries: Any, field: str, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise DecodeError("nested too deeply", field=field)
        holes = 0
        keys: list[tuple[int, Any]] = []
        for entry in entries:
            kind = entry.key.WhichOneof("kind")
            if kind not in _KEY_RANKS:
                raise DecodeError("a key that is not text, an integer or a boolean", field=field)
            key = getattr(entry.key, kind)
            if kind == "text":
                key = self.text(key)
            keys.append((_KEY_RANKS[kind], key))
            holes += self._argument(entry.value, field, depth + 1)
        check_keys(keys, field, sort=self._sorts)
        return holes


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
