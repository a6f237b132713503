"""What is found out about a distinct call, once: how long it is, and whether it may be.

Rows come again in every graph of a model. What was found out of one that is short is remembered
by its target and its bytes, and where it has words, by the strings of its message; so the checks
of a graph cost a look-up for each distinct call.
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
# Of strings that rows are remembered with: of all rows together some 30 MB at most.
_MAX_CHARACTERS = 8192


class CallVerdict(NamedTuple):
    """What is known of a call.

    Attributes:
        arguments: How many, those inside lists and dictionaries included.
        characters: Length of its literals in source, about.
        reason: Why it may not be, or None.
    """

    arguments: int
    characters: int
    reason: str | None


class _Strings(tuple[str, ...]):
    """The strings of a message; told from others by identity, so that looking up is quick."""

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
    """The verdict on a call that has no words; None for one that has."""
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
    """How many arguments there are, those inside lists and dictionaries included."""
    return len(arguments) + sum(
        count(children(argument)) for argument in arguments if not argument.HasField("slice")
    )
