"""The signatures of callables by their wire names, and why a call does not match one.

Operators have schemas. Functions, Tensor methods and higher-order operators have reviewed
signatures (`allowed/signatures.json`). The value of a hole (an operand) is not known here and
matches every parameter; torch checks it at run time.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.targets.allow_table import find, is_dispatched
from lazyfx.v1 import graph_pb2
from lazyfx_server.security import allowed
from lazyfx_server.security.signatures import Signature, of_schema, read
from lazyfx_server.security.signatures.kinds import fits_anything
from lazyfx_server.security.unchecked_kernels import unsafe_reason

_SHOWN = 300


def mismatch_reason(
    call: graph_pb2.Call, target: tuple[int, str], strings: Sequence[str]
) -> str | None:
    """Why a call matches no signature of its target, if so.

    Args:
        call: The call.
        target: Kind and name of the target.
        strings: The strings of the message.
    """
    kind, name = target
    try:
        known = signatures_of(kind, name)
    except DecodeError as error:
        return error.reason
    reasons = [signature.mismatch_reason(call, strings) for signature in known]
    if None in reasons:
        unsafe = unsafe_reason(call, kind, name, known, strings)
        return f"the arguments of {name[:200]} {unsafe}" if unsafe else None
    reason = reasons[0] if len(reasons) == 1 else "match none of its overloads"
    return f"the arguments of {name[:200]} {reason}; {_remedy(kind, name)}"


def module_mismatch_reason(call: graph_pb2.Call, strings: Sequence[str]) -> str | None:
    """Why a module cannot be called with these arguments, if so."""
    given = [*call.args, *(row.value for row in call.kwargs)]
    if all(fits_anything(argument, strings) for argument in given):
        return None
    return "a module call must not pass text or a callable; pass them to its constructor"


@functools.lru_cache(maxsize=4096)
def signatures_of(kind: int, name: str) -> tuple[Signature, ...]:
    """The signatures of a target, one per overload.

    Raises:
        DecodeError: There is no such target, or it has no reviewed signature.
    """
    found = find(kind, name)
    if isinstance(found, torch._ops.OpOverload):  # noqa: SLF001 - the operators' own type
        return (of_schema(found._schema),)  # noqa: SLF001 - there is no public way to a schema
    if isinstance(found, torch._ops.OpOverloadPacket):  # noqa: SLF001
        # TorchScript's own overloads, which take lists and strings, are not callable.
        overloads = [getattr(found, o) for o in found.overloads() if is_dispatched(name, o)]
        return tuple(of_schema(overload._schema) for overload in overloads)  # noqa: SLF001
    return tuple(read(text) for text in allowed.signatures(kind, name))


def _remedy(kind: int, name: str) -> str:
    if kind in (graph_pb2.TARGET_KIND_OPERATOR, graph_pb2.TARGET_KIND_OPERATOR_PACKET):
        return "its schemas are in torch.ops, e.g. print(torch.ops.aten.add.Tensor._schema)"
    return f"it takes {' or '.join(allowed.signatures(kind, name))[:_SHOWN]}"
