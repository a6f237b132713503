"""Checks the bytes of a protobuf message against bounds before it is parsed.

A message of 60 MB may hold 30 million empty submessages, each of which becomes an object when it is
parsed. A scan reads tags and lengths, skips the contents of strings and bytes, and stops at the
first field that exceeds its bound: the number of steps is limited by the bounds, not by the
message.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lazyfx_server.settings.part import Bound

# Nesting depth of messages; upb stops at 100.
MAX_DEPTH = 90
# Unknown fields may come from a newer release; bound their number and bytes.
MAX_UNKNOWN = 64
MAX_UNKNOWN_BYTES = 64 * 1024
_MAX_VARINT = 10


class OverBoundError(Exception):
    """A message is malformed or exceeds a bound.

    Attributes:
        field: Path of the field, e.g. "passes[3].name"; empty for the message itself.
        reason: What is wrong with it.
    """

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}" if field else reason)


_ANY = Bound(2**31)
_ONE = Bound(1)


@dataclass(frozen=True, slots=True)
class FieldBounds:
    """Bounds of one field of a message.

    Attributes:
        name: Name of the field.
        size: Maximum bytes of one occurrence of a string, bytes or message, or of packed numbers.
        count: Maximum occurrences in one message.
        inside: Bounds of the message in the field, if it is one.
        total: Maximum occurrences in the whole scanned message; None for no bound but `count`.
        mark: `scan` returns the position of this field.
    """

    name: str
    size: Bound = _ANY
    count: Bound = _ONE
    inside: MessageBounds | None = None
    total: Bound | None = None
    mark: bool = False


@dataclass(slots=True)
class MessageBounds:
    """Bounds of a message: its fields by number. May refer to itself."""

    fields: Mapping[int, FieldBounds] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Marked:
    """The position of a field with `mark`: its tag begins at `begin`, its content at `start`."""

    begin: int
    start: int
    end: int


def scan(data: bytes, bounds: MessageBounds) -> dict[str, Marked]:
    """Check a serialized message against bounds.

    Returns:
        The positions of the fields with `mark`, by path.

    Raises:
        OverBoundError: It is malformed, or something exceeds its bound.
    """
    scanner = _Scanner(data)
    scanner.message(0, len(data), bounds, "", 0)
    return scanner.marked


class _Scanner:
    """One scan; counts occurrences that are bounded over the whole message."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._totals: dict[int, int] = {}
        self._unknown = self._unknown_bytes = 0
        self.marked: dict[str, Marked] = {}

    def message(self, start: int, end: int, bounds: MessageBounds, path: str, depth: int) -> None:  # noqa: C901 - a call for each field would double its time
        """Scan the message between two positions."""
        if depth > MAX_DEPTH:
            raise OverBoundError(path, f"is nested more than {MAX_DEPTH} messages deep")
        data, known = self._data, bounds.fields
        counts: dict[int, int] = {}
        position = start
        while position < end:
            begin = position
            tag = data[position]
            position += 1
            if tag >= 0x80:
                tag, position = self._varint(begin, end, path)
            number, kind = tag >> 3, tag & 7
            rule = known.get(number)
            if kind == 2:
                length = data[position] if position < end else 0x80
                position += 1
                if length >= 0x80:
                    length, position = self._varint(position - 1, end, path)
                content, position = position, position + length
                if position > end:
                    raise OverBoundError(path, "the message is cut short")
            else:
                content = position
                position = self._skipped(position, end, kind, path)
            if rule is None:
                self._count_unknown(position - begin, path)
                continue
            count = counts.get(number, 0) + 1
            counts[number] = count
            if count > rule.count.most:
                _refuse_count(path, rule, rule.count)
            if rule.total is not None:
                self._count_total(rule, path)
            if kind == 2 and position - content > rule.size.most:
                where = _place(path, rule, count - 1)
                raise OverBoundError(
                    where,
                    f"has {position - content} bytes; {rule.size.allowed}",
                )
            if rule.mark and (kind == 2 or rule.inside is None):
                self.marked[_place(path, rule, count - 1)] = Marked(begin, content, position)
            if kind == 2 and rule.inside is None and not rule.mark:
                # Lists of names are long and uniform: they take most of the time in legitimate
                # messages.
                position, counts[number] = self._run(position, end, begin, rule, count)
            elif rule.inside is not None and kind == 2 and position > content:
                inner = _place(path, rule, count - 1)
                self.message(content, position, rule.inside, inner, depth + 1)

    def _run(
        self, position: int, end: int, begin: int, rule: FieldBounds, count: int
    ) -> tuple[int, int]:
        """Skip consecutive short entries of one list, as long as they are valid.

        Returns:
            The next position, and the number of entries of the list so far.
        """
        data, first, most = self._data, count, rule.count.most
        if rule.total is not None:
            counted = self._totals.get(id(rule), 0)
            most = min(most, count + rule.total.most - counted)
        tag, longest = data[begin], min(rule.size.most, 0x7F)
        while tag < 0x80 and position + 1 < end and data[position] == tag and count < most:
            length = data[position + 1]
            after = position + 2 + length
            if length > longest or after > end:
                break
            position, count = after, count + 1
        if rule.total is not None:
            self._totals[id(rule)] = counted + count - first
        return position, count

    def _varint(self, position: int, end: int, path: str) -> tuple[int, int]:
        value = shift = 0
        for place in range(position, min(end, position + _MAX_VARINT)):
            byte = self._data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, place + 1
            shift += 7
        raise OverBoundError(path, "the message is truncated, or contains an unterminated varint")

    def _skipped(self, position: int, end: int, kind: int, path: str) -> int:
        if kind == 0:
            return self._varint(position, end, path)[1]
        if kind not in (1, 5):
            raise OverBoundError(path, "the message contains a group, or is malformed")
        position += 8 if kind == 1 else 4
        if position > end:
            raise OverBoundError(path, "the message is cut short")
        return position

    def _count_total(self, rule: FieldBounds, path: str) -> None:
        assert rule.total is not None
        key = id(rule)
        self._totals[key] = self._totals.get(key, 0) + 1
        if self._totals[key] > rule.total.most:
            _refuse_count(path, rule, rule.total)

    def _count_unknown(self, size: int, path: str) -> None:
        self._unknown += 1
        self._unknown_bytes += size
        if self._unknown > MAX_UNKNOWN or self._unknown_bytes > MAX_UNKNOWN_BYTES:
            raise OverBoundError(path, "has too many fields that are unknown to this version")


def _place(path: str, rule: FieldBounds, number: int) -> str:
    name = rule.name if rule.count.most == 1 else f"{rule.name}[{number}]"
    return f"{path}.{name}" if path else name


def _refuse_count(path: str, rule: FieldBounds, bound: Bound) -> None:
    where = f"{path}.{rule.name}" if path else rule.name
    if bound.most == 1:
        raise OverBoundError(where, "is given twice")
    raise OverBoundError(where, f"has more than {bound.most} entries{bound}")
