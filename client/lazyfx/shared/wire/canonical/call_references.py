"""What a row of `calls` names in other tables.

Calls come again in every graph of a model, and in every model of a family. What was found out
about one is remembered by its bytes together with the rows that they name, so that it means the
same in any message.
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
    """The rows that a call names.

    Attributes:
        target: 1 + its row of `targets`; 0 where it has none.
        texts: Rows of `strings`, in the order in which they are used; some may be there twice.
        devices: Rows of `devices`, likewise.
    """

    target: int
    texts: tuple[int, ...]
    devices: tuple[int, ...]


class CallKey(NamedTuple):
    """A call and what it names: equal for calls that mean the same, but for their devices.

    Attributes:
        call: Serialized.
        target: The row of `targets`, serialized; empty where there is none.
        texts: The rows of `strings` in UTF-8, in the order in which they are used.
    """

    call: bytes
    target: bytes
    texts: tuple[bytes, ...]


class NamedCall(NamedTuple):
    """A row of `calls` together with the rows that it names."""

    key: CallKey
    references: CallReferences
    opcode: int


def named_calls(rows: Rows) -> list[NamedCall | None]:
    """What tells each row of `calls` from calls that mean something else, and what it names.

    None for what is too long to be remembered, names rows that are not there, or names rows of
    other tables too: symbolic expressions, callables among the arguments, process groups,
    spelled devices.
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
    """The rows that a serialized call names; None where it names rows of other tables too."""
    call = pb.Call.FromString(serialized)
    texts: list[int] = []
    devices: list[int] = []
    closed = all(_collect(argument, texts, devices) for argument in call.args)
    for keyword in call.kwargs:
        texts.append(keyword.name)
        closed = closed and _collect(keyword.value, texts, devices)
    return CallReferences(call.target, tuple(texts), tuple(devices)) if closed else None


def _collect(argument: pb.Argument, texts: list[int], devices: list[int]) -> bool:
    """Add what an argument names; False where it names something else."""
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
