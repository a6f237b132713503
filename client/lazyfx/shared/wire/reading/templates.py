"""Argument templates on the way in: each distinct call becomes a builder once."""
# ruff: noqa: SLF001 - private parts of our own class

from __future__ import annotations

import keyword
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.arguments.argument_kind import read
from lazyfx.shared.wire.arguments.filling import Holes, keywords, positional
from lazyfx.shared.wire.canonical.call_references import CallKey, NamedCall, call_references
from lazyfx.shared.wire.canonical.literal_rules import MAX_ROWS
from lazyfx.shared.wire.format import OPCODE_NAMES
from lazyfx.shared.wire.node_factory import CallShape
from lazyfx.shared.wire.targets import allow_table
from lazyfx.shared.wire.values import symbols
from lazyfx.shared.wire.values.descriptions import ValueTables
from lazyfx.shared.wire.values.exact_literals import with_exact_base
from lazyfx.v1 import graph_pb2 as pb


class Template(NamedTuple):
    """A call, ready to be filled in.

    Attributes:
        shape: What its nodes have in common.
        stars: For placeholders.
        reads_attribute: Whether an attribute index stands before the operands.
    """

    shape: CallShape
    stars: str
    reads_attribute: bool


class TemplateReader:
    """Turns the calls of a message into templates.

    Args:
        tables: The message and its devices.
        calls: Its rows of `calls`, with what they name.
    """

    def __init__(self, tables: ValueTables, calls: Sequence[NamedCall | None]) -> None:
        self._tables = tables
        self._body = tables.body
        self._calls = calls
        self._devices: dict[int, torch.device] = dict(enumerate(tables.devices))
        self._targets: dict[int, Any] = {}
        self._texts: dict[int, str] = {}

    def read(self, number: int) -> Template:
        """The template of a row of `body.calls`.

        Raises:
            DecodeError: The row makes no sense; names the field.
        """
        try:
            known = self._known(number)
            return self._read(self._body.calls[number]) if known is None else known
        except DecodeError as error:
            raise error.within(f"calls[{number}]") from None

    def _known(self, number: int) -> Template | None:
        """A template that was read before, for a call that names equal rows."""
        call = self._calls[number]
        if call is None:
            return None
        return _known_template(call.key, tuple(map(self.device, call.references.devices)))

    def _read(self, call: pb.Call) -> Template:
        op = OPCODE_NAMES.get(call.opcode)
        if op is None:
            raise DecodeError(f"unknown opcode {call.opcode}", field="opcode")
        _check_shape(call, op)
        with _Field("target"):
            target = self.target(call.target - 1) if call.target else None
        if isinstance(target, str) != (op == "call_method"):
            raise DecodeError(f"the target of a {op} is of another kind", field="target")
        args, kwargs, holes = self._arguments(call)
        args = with_exact_base(target, args)
        reason = allow_table.forbidden_lookup(target, args, kwargs)
        if reason is not None:
            raise DecodeError(reason, field="args")
        if len(kwargs) != len(call.kwargs):
            raise DecodeError("a keyword is given twice", field="kwargs")
        for name in kwargs:
            if not name.isidentifier() or keyword.iskeyword(name):
                raise DecodeError(f"{name[:100]!r} is not a keyword name", field="kwargs")
        shape = CallShape(op, target, holes, positional(args, holes), keywords(kwargs))
        return Template(shape, "*" * call.stars, op in _READERS)

    def _arguments(self, call: pb.Call) -> tuple[list[Any], dict[str, Any], int]:
        """Arguments with parts where operands go in, and the number of these."""
        holes = Holes()
        with _Field("args"):
            args = [read(argument, self, holes) for argument in call.args]
        with _Field("kwargs"):
            kwargs = {self.text(row.name): read(row.value, self, holes) for row in call.kwargs}
        return args, kwargs, holes.count

    def literal(self, argument: pb.Argument) -> Any:
        """An argument without holes."""
        holes = Holes()
        value = read(argument, self, holes)
        if holes.count:
            raise DecodeError("an operand where only literals are allowed")
        return value

    def text(self, index: int) -> str:
        """A row of `body.strings`."""
        found = self._texts.get(index)
        if found is None:
            found = self._texts[index] = _at(self._body.strings, index, "strings")
        return found

    def device(self, index: int) -> torch.device:
        """A row of `body.devices`."""
        found = self._devices.get(index)
        if found is None:
            raise DecodeError(f"index {index} is out of range of devices")
        return found

    def target(self, index: int) -> Any:
        """The callable, or method name, of a row of `body.targets`."""
        found = self._targets.get(index)
        if found is None:
            row = _at(self._body.targets, index, "targets")
            found = self._targets[index] = allow_table.find(row.kind, row.name)
        return found

    def process_group(self, number: int) -> str:
        """The name of a process group."""
        name: str = _at(self._tables.process_groups, number, "process_groups")
        return name

    def expression(self, index: int) -> Any:
        """The number of a row of `body.expressions`."""
        _at(self._body.expressions, index, "expressions")
        env = self._tables.argument_env()
        try:
            return symbols.scalar(self._body, index, env, self._tables.symbols(env))
        except DecodeError as error:  # its place is where it is an argument
            raise DecodeError(error.reason) from None


class _Field:
    """Places what is refused inside in a field of the call; entered for each distinct call."""

    __slots__ = ("_field",)

    def __init__(self, field: str) -> None:
        self._field = field

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DecodeError):
            raise error.within(self._field) from None


def _check_shape(call: pb.Call, op: str) -> None:
    """Check that a call has the parts that its opcode takes."""
    named = op in ("call_function", "call_method")
    if bool(call.target) != named:
        raise DecodeError(f"a {op} {'needs a' if named else 'takes no'} target", field="target")
    if call.stars > (2 if op == "placeholder" else 0):
        raise DecodeError("only placeholders take stars, at most two", field="stars")
    plain = op in ("placeholder", "get_attr", "output")
    most = {"placeholder": 1, "get_attr": 0, "output": 1}.get(op, len(call.args))
    if (plain and call.kwargs) or len(call.args) > most:
        raise DecodeError(f"a {op} does not take these arguments", field="args")
    if op == "output" and not call.args:
        raise DecodeError("an output needs an argument", field="args")
    if op == "call_method" and not call.args:
        raise DecodeError("a method call needs an object", field="args")


@lru_cache(maxsize=MAX_ROWS)
def _known_template(key: CallKey, devices: tuple[torch.device, ...]) -> Template | None:
    """The template of a call in any message where it names these rows; None where it is wrong."""
    call, references = pb.Call.FromString(key.call), call_references(key.call)
    if references is None:
        return None
    reader = TemplateReader(ValueTables(pb.GraphBody(), ()), ())
    reader._texts = dict(zip(references.texts, map(bytes.decode, key.texts), strict=True))
    reader._devices = dict(zip(references.devices, devices, strict=True))
    try:
        if call.target:
            target = pb.Target.FromString(key.target)
            reader._targets[call.target - 1] = allow_table.find(target.kind, target.name)
        return reader._read(call)
    except DecodeError:
        return None


_READERS = frozenset({"get_attr", "call_module"})


def _at(rows: Sequence[Any], index: int, table: str) -> Any:
    if not 0 <= index < len(rows):
        raise DecodeError(f"index {index} is out of range of {table}")
    return rows[index]
