"""Helpers that send the hostile cases other than graphs."""

from __future__ import annotations

import json
from typing import Any

from harness import (
    Refusal,
    graph_of,
)
from raw_graphs import RawGraph
from watching import Watched

from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2

FUNCTION, OPERATOR = graph_pb2.TARGET_KIND_FUNCTION, graph_pb2.TARGET_KIND_OPERATOR
PARAMETER = graph_pb2.TENSOR_ROLE_PARAMETER


def small() -> RawGraph:
    """One placeholder; nodes are added by the test."""
    graph = RawGraph()
    graph.node("placeholder", name="x")
    return graph


def returning(graph: RawGraph, node: int = 0) -> RawGraph:
    graph.node("output", args=[{"$node": node}])
    return graph.finished()


def with_unknown_field(payload: object) -> bytes:
    """A good body, with what the format has no place for in a field that it does not know."""
    data = json.dumps(payload).encode()[:100]
    return wire.encode(graph_of(2.5)).body + b"\xfa\x3f" + bytes([len(data)]) + data


def must_refuse(
    watched: Watched, bodies: list[bytes], *passes: str, codes: tuple[str, ...] = ()
) -> None:
    """Send bodies that are all refused as INVALID_ARGUMENT, with a field, and cached nowhere."""
    entries = watched.entries()
    for body in bodies:
        outcome = watched.ask(body, None, *passes)
        assert isinstance(outcome, Refusal), outcome
        assert outcome.code in (codes or ("INVALID_ARGUMENT",)), outcome
        assert outcome.fields, outcome
        assert len(outcome.message) < 3000
    assert watched.entries() == entries


def must_refuse_graph(watched: Watched, graph: RawGraph, *passes: str) -> Refusal:
    entries = watched.entries()
    outcome = watched.ask(graph.serialized(), graph.names, *passes)
    assert isinstance(outcome, Refusal), outcome
    assert outcome.code == "INVALID_ARGUMENT", outcome
    assert outcome.fields, outcome
    assert watched.entries() == entries
    return outcome


def unsayable(watched: Watched, case: Any) -> None:
    """The format has no field for it; one that it does not know is refused."""
    must_refuse(watched, [with_unknown_field(case["payload"])], "shape_propagation")
