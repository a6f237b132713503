"""Checks what some kernels, even for fake tensors, assume; they crash the process otherwise.

They access a list without checking its length, or divide by a number without checking it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security.signatures import Signature

_LISTS = ("list", "tuple", "size")


def _of_length(count: int, *, or_more: bool = False) -> tuple[str, Callable[[pb.Argument], bool]]:
    def fits(argument: pb.Argument) -> bool:
        kind = argument.WhichOneof("kind")
        if kind == "integer":
            return True  # torch converts it to a list
        if kind not in _LISTS:
            return False
        found = len(getattr(argument, kind).items)
        return found >= count if or_more else found == count

    return f"a list of {count} {'or more ' if or_more else ''}written in the call", fits


def _is_positive(argument: pb.Argument) -> bool:
    return argument.WhichOneof("kind") == "integer" and argument.integer > 0


_POSITIVE = ("a positive number written in the call", _is_positive)
_POOLED: Final = {
    number: dict.fromkeys(("kernel_size", "output_size"), _of_length(number)) for number in (2, 3)
}
# By the name shared by overloads and functions.
_NEEDS: Final[Mapping[str, Mapping[str, tuple[str, Callable[[pb.Argument], bool]]]]] = {
    "_stack": {"tensors": _of_length(1, or_more=True)},
    "fractional_max_pool2d_backward": _POOLED[2],
    "fractional_max_pool3d_backward": _POOLED[3],
    "native_group_norm": {"group": _POSITIVE},
    "native_group_norm_backward": {"group": _POSITIVE},
    "quantized_lstm_cell": {"hx": _of_length(2)},
}
_EQUAL_LENGTHS: Final = {"_foreach_copy": ("self", "src")}


def unsafe_reason(
    call: pb.Call, kind: int, name: str, signatures: Sequence[Signature], strings: Sequence[str]
) -> str | None:
    """Why a call could crash its process, if so.

    Args:
        call: A call that matches one of the signatures.
        kind: Kind of the target.
        name: Wire name of the target.
        signatures: The target's signatures.
        strings: The strings of the message.
    """
    if kind in (pb.TARGET_KIND_OPERATOR, pb.TARGET_KIND_OPERATOR_PACKET):
        name = name.partition("::")[2].partition(".")[0]
    name = name.rpartition(".")[2]
    needs, paired = _NEEDS.get(name, {}), _EQUAL_LENGTHS.get(name, ())
    for signature in signatures if needs or paired else ():
        given = signature.given(call, strings)
        for argument, (needed, fits) in needs.items():
            if argument in given and not fits(given[argument]):
                return f"give {argument!r} as something else than {needed}"
        if len({_length(given[argument]) for argument in paired if argument in given}) > 1:
            return f"give {' and '.join(map(repr, paired))} as lists of different lengths"
    return None


def _length(argument: pb.Argument) -> int | None:
    kind = argument.WhichOneof("kind")
    return len(getattr(argument, kind).items) if kind in _LISTS else None
