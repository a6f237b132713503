"""Checks each distinct call once: its size, and whether it is allowed.

The same rows recur in every graph of a model. Verdicts on short rows are cached by target and
bytes, and, if they contain strings, by the strings of their message. So checking a graph costs one
lookup per distinct call.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

from lazyfx.shared.source.writable import characters, unwritable_reason
from lazyfx.shared.wire.arguments.argument_kind import children
from lazyfx.shared.wire.canonical.literal_rules import LONGEST_ROW, MAX_ROWS
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.call_schemas import mismatch_reason, module_mismatch_reason

_Target = tuple[int, str]
_NO_TARGET: _Target = (0, "")
# Bound on the strings of cached rows: about 30 MB over all rows.
_MAX_CHARACTERS = 8192


class CallVerdict(NamedTuple):
    """The result of checking a call.

    Attributes:
        arguments: Number of arguments, including those inside lists and dictionaries.
        characters: Approximate length of its literals in source.
        reason: Why it is refused, or None.
    """

    arguments: int
    characters: int
    reason: str | None


class _Strings(tuple[str, ...]):
    """The strings of a message, hashed by identity for fast lookups."""

    __slots__ = ()
    __hash__ = object.__hash__

    def __eq__(self, other: object) -> bool:
        return self is other


def call_verdicts(body: graph_pb2.GraphBody) -> list[CallVerdict]:
    """A verdict for each row of `body.calls`.

    Args:
        body: A body in canonical form.
    """
    strings: Sequence[str] = tuple(body.strings)
    remembered = sum(map(len, strings)) <= _MAX_CHARACTERS
    if remembered:
        strings = _interned(strings)
    targets = [_NO_TARGET, *((row.kind, row.name) for row in body.targets)]
    nested = len(body.graphs) > 1
    verdicts = []
    for call in body.calls:
        target = targets[call.target]
        written = call.SerializeToString(deterministic=True)
        found = _known(written, target, nested) if len(written) <= LONGEST_ROW else None
        if found is None and remembered and len(written) <= LONGEST_ROW:
            found = _known_with_words(written, target, nested, strings)
        verdicts.append(found or _verdict(call, target, strings, nested))
    return verdicts


@functools.lru_cache(maxsize=64)
def _interned(strings: tuple[str, ...]) -> _Strings:
    return _Strings(strings)


@functools.lru_cache(maxsize=MAX_ROWS)
def _known(written: bytes, target: _Target, nested: bool) -> CallVerdict | None:
    """The verdict on a call without strings; None for a call with strings."""
    call = graph_pb2.Call.FromString(written)
    try:
        return _verdict(call, target, (), nested)
    except IndexError:
        return None


@functools.lru_cache(maxsize=MAX_ROWS)
def _known_with_words(
    written: bytes, target: _Target, nested: bool, strings: Sequence[str]
) -> CallVerdict:
    return _verdict(graph_pb2.Call.FromString(written), target, strings, nested)


def _verdict(
    call: graph_pb2.Call, target: _Target, strings: Sequence[str], nested: bool
) -> CallVerdict:
    arguments = count(call.args) + count([row.value for row in call.kwargs])
    reason = unwritable_reason(call, target, strings)
    length = characters(call, strings)
    if reason is None and target != _NO_TARGET:
        reason = mismatch_reason(call, target, strings)
    elif reason is None and call.opcode == graph_pb2.OPCODE_CALL_MODULE and not nested:
        reason = module_mismatch_reason(call, strings)
    return CallVerdict(arguments, length, reason)


def count(arguments: Sequence[graph_pb2.Argument]) -> int:
    """The number of arguments, including those inside lists and dictionaries."""
    return len(arguments) + sum(
        count(children(argument)) for argument in arguments if not argument.HasField("slice")
    )
