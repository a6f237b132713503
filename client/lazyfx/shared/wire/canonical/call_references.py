"""Finds the rows of other tables to which a row of `calls` refers.

Calls recur in every graph of a model and in every model of a family. Check results are cached by a
call's bytes together with the rows that it refers to, so that they are valid in any message.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

from lazyfx.shared.wire.arguments.argument_kind import KINDS
from lazyfx.shared.wire.canonical.literal_rules import LONGEST_ROW, MAX_ROWS
from lazyfx.v1 import graph_pb2 as pb

# The rows of each table of a message, serialized.
Rows: TypeAlias = Mapping[str, Sequence[bytes]]


class CallReferences(NamedTuple):
    """The rows to which a call refers.

    Attributes:
        target: 1 + its row of `targets`; 0 if it has none.
        texts: Rows of `strings`, in the order of their use, possibly with repetitions.
        devices: Rows of `devices`, likewise.
    """

    target: int
    texts: tuple[int, ...]
    devices: tuple[int, ...]


class CallKey(NamedTuple):
    """A call and its rows: equal for calls that mean the same, except for devices.

    Attributes:
        call: Serialized.
        target: The row of `targets`, serialized; empty if there is none.
        texts: The rows of `strings` in UTF-8, in the order of their use.
    """

    call: bytes
    target: bytes
    texts: tuple[bytes, ...]


class NamedCall(NamedTuple):
    """A row of `calls` with the rows to which it refers."""

    key: CallKey
    references: CallReferences
    opcode: int


def named_calls(rows: Rows) -> list[NamedCall | None]:
    """The key of each row of `calls`, and the rows to which it refers.

    None for calls that are too long to be cached, refer to missing rows, or refer to rows of other
    tables too: symbolic expressions, callables among the arguments, process groups, spelled
    devices.
    """
    targets, strings = [b"", *rows["targets"]], rows["strings"]
    found: list[NamedCall | None] = []
    for call in rows["calls"]:
        references = call_references(call) if len(call) <= LONGEST_ROW else None
        if references is None or references.target >= len(targets):
            found.append(None)
        elif not references.texts:
            found.append(_named_call(call, targets[references.target], ()))
        elif max(references.texts) >= len(strings):
            found.append(None)
        else:
            texts = tuple(map(strings.__getitem__, references.texts))
            fits = sum(map(len, texts)) <= LONGEST_ROW
            target = targets[references.target]
            found.append(_named_call(call, target, texts) if fits else None)
    return found


@lru_cache(maxsize=MAX_ROWS)
def _named_call(call: bytes, target: bytes, texts: tuple[bytes, ...]) -> NamedCall | None:
    references = call_references(call)
    if references is None:
        return None
    return NamedCall(CallKey(call, target, texts), references, pb.Call.FromString(call).opcode)


@lru_cache(maxsize=MAX_ROWS)
def call_references(serialized: bytes) -> CallReferences | None:
    """The rows to which a serialized call refers; None if it also refers to other tables."""
    call = pb.Call.FromString(serialized)
    texts: list[int] = []
    devices: list[int] = []
    closed = all(_collect(argument, texts, devices) for argument in call.args)
    for keyword in call.kwargs:
        texts.append(keyword.name)
        closed = closed and _collect(keyword.value, texts, devices)
    return CallReferences(call.target, tuple(texts), tuple(devices)) if closed else None


def _collect(argument: pb.Argument, texts: list[int], devices: list[int]) -> bool:
    """Add the rows to which an argument refers; False if it refers to something else."""
    kind = KINDS.get(argument.WhichOneof("kind") or "")
    if kind is None:
        return True
    if kind.names == "strings":
        texts.append(argument.text)
    elif kind.names == "devices":
        devices.append(argument.device)
    return kind.names != "other" and all(
        _collect(part, texts, devices) for part in kind.children(argument)
    )
