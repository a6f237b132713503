"""Errors keep their attributes when pickled, copied or raised elsewhere."""

from __future__ import annotations

import ast
import copy
import pickle
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from lazyfx import errors
from lazyfx.errors import DecodeError, FieldViolation, ProtocolError, UnsupportedGraphError
from lazyfx.shared.grpc_status import rich_status, status_to_error

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


_PACKAGES = [Path(__file__).parents[2] / each for each in ("client/lazyfx", "server/lazyfx_server")]
_PLACED = {"DecodeError", "ProtocolError", "UnsupportedGraphError", "PassError"}
_CUTTING = {"partition", "rpartition", "split", "removeprefix", "removesuffix", "startswith"}


def _sources() -> Iterator[tuple[Path, ast.Module]]:
    for package in _PACKAGES:
        for path in sorted(package.rglob("*.py")):
            yield path, ast.parse(path.read_text("utf-8"))


def _name(node: ast.AST | None) -> str:
    return node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")


def _is_text_of(node: ast.AST, error: str) -> bool:
    """Whether an expression is `str(error)`, or an f-string with the error in it."""
    if isinstance(node, ast.FormattedValue):
        return _name(node.value) == error
    return isinstance(node, ast.Call) and _name(node.func) == "str" and _name(node.args[0]) == error


def test_no_error_with_a_place_is_made_of_the_text_of_another() -> None:
    """Nor is a text cut up to find the place in it: `within` and `called` are for that."""
    found = []
    for path, tree in _sources():
        for handler in (n for n in ast.walk(tree) if isinstance(n, ast.ExceptHandler)):
            kinds = {_name(node) for node in ast.walk(handler.type)} if handler.type else set()
            if handler.name is None or not kinds & _PLACED:
                continue
            for call in (n for n in ast.walk(handler) if isinstance(n, ast.Call)):
                parts = [part for argument in call.args for part in ast.walk(argument)]
                owner = call.func.value if isinstance(call.func, ast.Attribute) else call.func
                made = _name(call.func) in _PLACED | {"of_field"}
                cut = _name(call.func) in _CUTTING and _is_text_of(owner, handler.name)
                if cut or (made and any(_is_text_of(part, handler.name) for part in parts)):
                    found.append(f"{path.name}:{call.lineno}")
    assert not found


def test_an_invalid_request_always_names_a_field() -> None:
    made = [
        f"{path.name}:{call.lineno}"
        for path, tree in _sources()
        if path.is_relative_to(_PACKAGES[1])
        for call in ast.walk(tree)
        if isinstance(call, ast.Call) and _name(call.func) == "InvalidRequestError"
    ]
    assert not made, "use InvalidRequestError.of_field"
