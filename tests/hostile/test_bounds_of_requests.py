"""Each bound of a request and of a job: one above it is refused with the setting's name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from server.harness import DCE, Refusal, compile_request, connected, refused, request_of_body
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx.shared import wire
from lazyfx.shared.wire.format import MAX_DEPTH, MAX_EXPRESSION_TREE
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

if TYPE_CHECKING:
    from servers import RunningServer

BOUNDS = {
    "max_graph_bytes": 3000, "max_nodes": 12, "max_passes": 3, "max_rewrites": 2, "max_matches": 2,
    "max_match_steps": 45, "max_folded_bytes": 100, "max_calls": 8, "max_arguments": 40,
}  # fmt: skip


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    flags = [(f"--{name.replace('_', '-')}", str(bound)) for name, bound in BOUNDS.items()]
    return launch_for_file("--workers", "1", *(word for flag in flags for word in flag))


def chain(length: int) -> GraphModule:
    """As many sines of one another."""

    def f(x: torch.Tensor) -> torch.Tensor:
        for _ in range(length):
            x = torch.sin(x)
        return x

    return symbolic_trace(f)


def calls(count: int) -> GraphModule:
    """As many different calls, besides the argument and the result."""

    def f(x: torch.Tensor) -> torch.Tensor:
        for i in range(count):
            x = torch.add(x, i)
        return x

    return symbolic_trace(f)


def rewriting(module: GraphModule, *pairs: tuple[GraphModule, GraphModule]) -> pb.CompileRequest:
    request = compile_request(module, "replace_pattern")
    for pattern, replacement in pairs:
        request.passes[0].rewrites.add(
            pattern=wire.encode(pattern).message(), replacement=wire.encode(replacement).message()
        )
    return request


def folding(elements: int) -> pb.CompileRequest:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + torch.ones(elements, dtype=torch.uint8)

    module = (
        torch.export.export(Model(), (torch.ones(elements),))
        .run_decompositions()
        .module(check_guards=False)
    )
    return compile_request(module, "constant_fold")


def long_body(size: int) -> pb.CompileRequest:
    request = compile_request(chain(1))
    request.graph.body = bytes(size)
    return request


cosine = symbolic_trace(lambda x: torch.cos(x))
# What is one over each, and what is at it.
CASES: dict[str, tuple[Callable[[], pb.CompileRequest], Callable[[], pb.CompileRequest] | None]] = {
    "max_graph_bytes": (lambda: long_body(3001), None),
    "max_nodes": (lambda: compile_request(chain(11)), lambda: compile_request(chain(10))),
    "max_calls": (lambda: compile_request(calls(7)), lambda: compile_request(calls(6))),
    "max_passes": (
        lambda: compile_request(chain(1), *[DCE] * 4), lambda: compile_request(chain(1), *[DCE] * 3)
    ),
    "max_rewrites": (
        lambda: rewriting(chain(1), *[(chain(1), cosine)] * 3),
        lambda: rewriting(chain(1), *[(chain(1), cosine)] * 2),
    ),
    "max_matches": (
        lambda: rewriting(chain(3), (chain(1), cosine)),
        lambda: rewriting(chain(2), (chain(1), cosine)),
    ),
    # Five sines that may be the end of a pattern of three nodes: 45 steps.
    "max_match_steps": (
        lambda: rewriting(chain(5), (chain(2), cosine)),
        lambda: rewriting(chain(5), (symbolic_trace(lambda x: torch.cos(x)), cosine)),
    ),
    "rewrites' graphs": (lambda: rewriting(chain(1), (calls(7), cosine)), None),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_one_over_is_refused_and_at_the_bound_is_not(server: RunningServer, name: str) -> None:
    over, within = CASES[name]
    with connected(server.address) as stub:
        refusal: Refusal = refused(lambda: stub.Compile(over()))
        assert refusal.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED")
        assert refusal.fields or refusal.message.startswith("passes[0].rewrites[0].pattern")
        if within is not None:
            stub.Compile(within())


def test_the_server_tells_its_bounds(server: RunningServer) -> None:
    with connected(server.address) as stub:
        listed = {
            row.name: row.value for row in stub.GetServerInfo(pb.GetServerInfoRequest()).limits
        }
    assert {name: listed[name] for name in BOUNDS} == BOUNDS
    page = Path(__file__).parents[2].joinpath("docs/bounds.md").read_text("utf-8")
    bounds = page[: page.index("## Quotas")]
    written = set(re.findall(r"^\| `(\w+)`", bounds, re.MULTILINE))
    assert written == listed.keys()


def nested(depth: int) -> bytes:
    """A call with lists in one another."""
    body = graph_pb2.GraphBody()
    body.targets.add(kind=graph_pb2.TARGET_KIND_FUNCTION, name="torch.tensor")
    row = graph_pb2.Argument(integer=1)
    for _ in range(depth):
        row = graph_pb2.Argument(list=graph_pb2.ArgumentList(items=[row]))
    body.calls.add(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1, args=[row])
    hole = graph_pb2.Argument(operand=graph_pb2.Empty())
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[hole])
    body.graphs.add(calls=[0, 1], operands=[1])
    return body.SerializeToString(deterministic=True)


def test_nesting_is_bounded(server: RunningServer) -> None:
    with connected(server.address) as stub:
        refusal = refused(lambda: stub.Compile(request_of_body(nested(MAX_DEPTH + 1))))
        assert refusal.code == "INVALID_ARGUMENT"
        stub.Compile(request_of_body(nested(MAX_DEPTH)))


def summed(operands: int) -> bytes:
    """A described size that is the sum of as many symbols."""
    body = graph_pb2.GraphBody()
    body.calls.add(opcode=graph_pb2.OPCODE_PLACEHOLDER)
    hole = graph_pb2.Argument(operand=graph_pb2.Empty())
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[hole])
    body.graphs.add(calls=[0, 1], operands=[1], values=[1, 0])
    rows: Any = body.expressions
    rows.add(operator=graph_pb2.SYMBOLIC_OPERATOR_SYMBOL, operands=[0])
    body.symbols.add(kind=1)
    rows.add(operator=graph_pb2.SYMBOLIC_OPERATOR_ADD, operands=[0] * operands)
    body.values.add(expression=1)
    return body.SerializeToString(deterministic=True)


def test_expressions_are_bounded(server: RunningServer) -> None:
    with connected(server.address) as stub:
        refusal = refused(lambda: stub.Compile(request_of_body(summed(MAX_EXPRESSION_TREE))))
        assert refusal.code == "INVALID_ARGUMENT"
        assert "too large" in refusal.message
        stub.Compile(request_of_body(summed(MAX_EXPRESSION_TREE - 1)))


def test_folded_bytes_are_bounded(server: RunningServer) -> None:
    with connected(server.address) as stub:
        refusal = refused(lambda: stub.Compile(folding(101)))
        assert refusal.code == "RESOURCE_EXHAUSTED"
        assert "101 bytes; the limit is 100" in refusal.message
        assert stub.Compile(folding(100)).report.passes[0].changed


def test_a_pattern_that_is_too_deep_is_no_defect_of_ours(
    launch_for_file: Callable[..., RunningServer],
) -> None:
    server = launch_for_file("--workers", "1")
    with connected(server.address) as stub:
        deep = rewriting(chain(501), (chain(500), cosine))
        refusal = refused(lambda: stub.Compile(deep))
    assert refusal.code == "RESOURCE_EXHAUSTED"
    assert "too deep" in refusal.message
