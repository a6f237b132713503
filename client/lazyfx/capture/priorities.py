"""Priorities of requests, by name."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from lazyfx.errors import LazyfxError
from lazyfx.v1 import compiler_pb2 as pb

Priority: TypeAlias = Literal["interactive", "batch", "prewarm"]
"""How urgent a request is, among all of this caller: "interactive" if the caller is waiting for the
answer, "batch" if it is one of many, "prewarm" if the result will be needed later."""

PRIORITIES: tuple[str, ...] = get_args(Priority)


def priority_number(name: Priority) -> pb.Priority.ValueType:
    """The number of a priority on the wire; unset for the default, "interactive".

    Raises:
        LazyfxError: There is no such priority; lists those that there are.
    """
    if name not in PRIORITIES:
        raise LazyfxError(f"priority must be one of {', '.join(PRIORITIES)}, not {name!r}")
    if name == "interactive":
        return pb.PRIORITY_UNSPECIFIED
    return pb.Priority.Value(f"PRIORITY_{name.upper()}")
