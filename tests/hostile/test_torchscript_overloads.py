"""Operator packets with TorchScript-only overloads, which torch selects without tensor arguments.

Those divide and index into lists without checks. Every packet that graphs may call is called with
numbers, texts and lists in a process that may die.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from typing import Any

import pytest
import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.targets.allow_table import find, is_dispatched
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.security import allowed
from lazyfx_server.security.call_schemas import mismatch_reason

_LOWEST = -(2**63)
_VALUES: list[Any] = [0, -1, _LOWEST, 5, 0.0, float("nan"), "", "%s", [], [1], None, True]


def _packets() -> list[Any]:
    found = []
    for name in sorted(allowed.collect()["packets"]):
        packet = find(pb.TARGET_KIND_OPERATOR_PACKET, name)
        assert isinstance(packet, torch._ops.OpOverloadPacket)
        if not all(is_dispatched(name, overload) for overload in packet.overloads()):
            found.append(packet)
    return found


def _call_all(packets: list[Any], progress: Any) -> None:
    for packet in packets:
        progress.value = str(packet).encode()
        for one in _VALUES:
            calls = [(one,), *((one, two) for two in (0, -1, _LOWEST, 5, "", [], None))]
            for args in calls:
                with contextlib.suppress(Exception):
                    packet(*args)
    progress.value = b""


def test_no_packet_ends_the_process() -> None:
    context = multiprocessing.get_context("fork")
    packets = _packets()
    assert len(packets) > 50
    progress = context.Array("c", 200)
    child = context.Process(target=_call_all, args=(packets, progress))
    child.start()
    child.join(300)
    assert (child.exitcode, progress.value) == (0, b"")


@pytest.mark.parametrize("name", ["aten::mul", "aten::mul_"])
def test_no_list_is_repeated_by_a_packet(name: str) -> None:
    """`[x] * 2**40` is TorchScript's."""
    call = pb.Call(opcode=pb.OPCODE_CALL_FUNCTION, target=1)
    call.args.add().list.items.add().integer = 1
    call.args.add().integer = 2**40
    assert mismatch_reason(call, (pb.TARGET_KIND_OPERATOR_PACKET, name), [])


@pytest.mark.parametrize("name", ["copy", "gcd", "remainder"])
def test_a_packet_that_could_is_refused_and_its_overloads_are_not(name: str) -> None:
    with pytest.raises(DecodeError, match="not in the table of allowed targets"):
        find(pb.TARGET_KIND_OPERATOR_PACKET, f"aten::{name}")
    overload = "Tensor" if name == "remainder" else "default"
    assert find(pb.TARGET_KIND_OPERATOR, f"aten::{name}.{overload}")
