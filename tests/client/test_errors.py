"""What an error says is in its attributes, wherever it goes."""

from __future__ import annotations

import copy
import pickle

import grpc
import pytest

from lazyfx import errors
from lazyfx.errors import DecodeError, FieldViolation, ProtocolError, UnsupportedGraphError
from lazyfx.status import rich_status, status_to_error

_VIOLATIONS = [FieldViolation("graph.calls[3].opcode", "unknown", "relu")]
ALL = [
    errors.AddressError("no address"),
    UnsupportedGraphError("a hook", node="relu", attribute="a.b", remedy="remove it"),
    DecodeError("unknown opcode 9", field="calls[3].opcode", node=7, graph=1).called("relu"),
    ProtocolError("too long", field="graphs", node=2),
    errors.ClosedError(),
    errors.ForkedProcessError(),
    errors.MissingBlobsError("send it", code="FAILED_PRECONDITION", subjects=["blobs/00"]),
    *(
        status_to_error(rich_status(code, "why", violations=_VIOLATIONS, retry_after=1.5))
        for code in grpc.StatusCode
        if code is not grpc.StatusCode.OK
    ),
]


@pytest.mark.parametrize("error", ALL, ids=lambda error: type(error).__name__)
def test_an_error_may_be_copied_and_sent_to_another_process(error: errors.LazyfxError) -> None:
    for other in (copy.copy(error), pickle.loads(pickle.dumps(error))):
        assert type(other) is type(error)
        assert str(other) == str(error)
        assert vars(other) == vars(error)


def test_each_layer_adds_to_a_place_what_it_knows() -> None:
    error = ProtocolError("unknown opcode 9", field="opcode")
    placed = error.within("calls[3]").within(node=7).within("graph", graph=1, node=9)
    assert isinstance(placed, ProtocolError)
    assert (placed.field, placed.node, placed.graph) == ("graph.calls[3].opcode", 7, 1)
    assert str(placed) == "graph.calls[3].opcode: unknown opcode 9 (node 7 of graph 1)"
    named = placed.called("relu")
    assert named.description == "unknown opcode 9 (node 7 of graph 1, called 'relu')"
    assert str(error) == "opcode: unknown opcode 9"
    unsupported = UnsupportedGraphError("a hook", remedy="remove it").within(attribute="a.b")
    assert str(unsupported.within(node="relu").within(node="other")) == (
        "node 'relu': attribute 'a.b': a hook; remove it"
    )


def test_a_status_carries_field_and_node_and_the_client_rebuilds_them() -> None:
    for code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED):
        error = status_to_error(rich_status(code, "why", violations=_VIOLATIONS))
        assert (error.field, error.node, error.reason) == ("graph.calls[3].opcode", "relu", "why")
        assert error.violations == tuple(_VIOLATIONS)
    nowhere = status_to_error(rich_status(grpc.StatusCode.INVALID_ARGUMENT, "why"))
    assert (nowhere.field, nowhere.node) == ("", None)
    foreign = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "why", violations=_VIOLATIONS)
    foreign.details[1].value = b"\xff"
    assert status_to_error(foreign).node is None
