"""Each bound of a graph: a graph at the bound is accepted, one above it is refused by setting name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import nursery
import pytest
import torch
from server.harness import connected, refused, request_of_body
from torch.fx import Graph, GraphModule, symbolic_trace

from lazyfx.errors import DecodeError
from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.checked_graph import check
from lazyfx_server.settings.limits import GraphLimits

if TYPE_CHECKING:
    from servers import RunningServer


def _described(*values: object) -> bytes:
    """A graph whose one argument is said to be these values."""
    graph = Graph()
    placeholder = graph.placeholder("x")
    placeholder.meta["val"] = values[0] if len(values) == 1 else list(values)
    graph.output(placeholder)
    return wire.encode(GraphModule(torch.nn.Module(), graph)).body


def _traced(function: Callable[[torch.Tensor], object]) -> bytes:
    return wire.encode(symbolic_trace(function)).body


# What the source of `x -> relu(x)` takes, as estimated, less one.
_SHORT_SOURCE = 131
_meta = torch.empty(3, 4, 5, device="meta")
# What is one over a bound of so much.
OVER = {
    "max_edges": (3, _traced(lambda x: torch.stack([x, x, x]))),
    "max_calls": (3, _traced(lambda x: torch.relu(torch.neg(x)))),
    "max_arguments": (4, _traced(lambda x: torch.permute(x, (0, 1, 2)))),
    "max_string_bytes": (
        10,
        _traced(lambda x: torch.nn.functional.gelu(x, approximate="tanhtanhta")),
    ),
    "max_rank": (2, _described(_meta)),
    "max_elements": (59, _described(_meta)),
    "max_outputs": (2, _described(_meta, _meta, _meta)),
    "max_source_bytes": (_SHORT_SOURCE, _traced(lambda x: torch.relu(x))),
}


@pytest.mark.parametrize("name", OVER)
def test_one_over_is_refused_and_at_the_bound_is_not(name: str) -> None:
    bound, body = OVER[name]
    with pytest.raises(DecodeError, match=f"setting {name}"):
        check(body, limits=GraphLimits(**{name: bound}))
    check(body, limits=GraphLimits(**{name: bound + 1}))


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    flags = [(f"--{name.replace('_', '-')}", str(bound)) for name, (bound, _) in OVER.items()]
    return launch_for_file("--workers", "1", *(word for flag in flags for word in flag))


@pytest.mark.parametrize("name", OVER)
def test_a_server_holds_graphs_to_its_settings(server: RunningServer, name: str) -> None:
    with connected(server.address) as stub:
        refusal = refused(lambda: stub.Compile(request_of_body(OVER[name][1])))
        assert refusal.code == "INVALID_ARGUMENT"
        assert refusal.fields
        limits = {x.name: x.value for x in stub.GetServerInfo(pb.GetServerInfoRequest()).limits}
    assert limits[name] == OVER[name][0]
    assert {"max_nesting", "max_source_bytes", "job_cpu_seconds", "max_streams"} <= limits.keys()


def _call(operator: str, *args: graph_pb2.Argument, **kwargs: graph_pb2.Argument) -> bytes:
    """A graph that calls one operator on its argument and these literals."""
    body = graph_pb2.GraphBody()
    body.targets.add(kind=graph_pb2.TARGET_KIND_OPERATOR, name=operator)
    hole = graph_pb2.Argument(operand=graph_pb2.Empty())
    body.calls.add(opcode=graph_pb2.OPCODE_PLACEHOLDER)
    call = body.calls.add(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1, args=[hole, *args])
    for name, value in sorted(kwargs.items()):
        body.strings.append(name)
        call.kwargs.add(name=len(body.strings) - 1, value=value)
    body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT, args=[hole])
    body.graphs.add(calls=[0, 1, 2], operands=[1, 1])
    return body.SerializeToString(deterministic=True)


_one = graph_pb2.Argument(integer=1)
_pair = graph_pb2.Argument(list=graph_pb2.ArgumentList(items=[_one, _one]))
_word = graph_pb2.Argument(dictionary=graph_pb2.Dictionary())
MISFITS = {
    "too many by place": (_call("aten::relu.default", _one), "takes at most 1 positional"),
    "an unknown name": (_call("aten::relu.default", inplace=_one), "does not accept"),
    "something missing": (_call("aten::permute.default"), "lack dims"),
    "twice": (_call("aten::sum.dim_IntList", _pair, dim=_pair), "twice"),
    "a number where a list of lists is": (_call("aten::softmax.int", _pair), "as list"),
    "a dict where a number is": (_call("aten::add.Scalar", _word), "as dictionary"),
}


@pytest.mark.parametrize("case", MISFITS)
def test_arguments_must_fit_the_operator_s_schema(case: str) -> None:
    body, expected = MISFITS[case]
    with pytest.raises(DecodeError, match=expected) as refusal:
        check(body)
    assert refusal.value.node == 1


FITS = {
    "a number for a list of equal ones": _call("aten::sum.dim_IntList", _one),
    "a number where a tensor is": _call("aten::add.Tensor", _one),
    "a name of the schema": _call(
        "aten::sum.dim_IntList", _pair, keepdim=graph_pb2.Argument(boolean=True)
    ),
}


@pytest.mark.parametrize("case", FITS)
def test_what_fits_is_taken(case: str) -> None:
    check(FITS[case])


def test_the_reviewed_table_is_that_of_this_torch() -> None:
    from lazyfx_server.security import allowed

    if allowed.reviewed() is None:
        pytest.skip("the table was reviewed for another torch; there all that torch has counts")
    # In another process: tests register their own operators, and Inductor registers some.
    done = nursery.run("torch", ["-m", "lazyfx_server.security.allowed"])
    assert done.returncode == 0, f"review these (make targets ARGS=--write): {done.stdout[-2000:]}"


def test_an_unreviewed_target_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazyfx_server.security import allowed

    table = allowed.reviewed()
    if table is None:
        pytest.skip("the table was reviewed for another torch; there all that torch has counts")
    less = {**table, "functions": table["functions"] - {"torch.relu"}}
    monkeypatch.setattr(allowed, "reviewed", lambda: less)
    with pytest.raises(DecodeError, match="reviewed table"):
        check(_traced(lambda x: torch.relu(x)))
    check(_traced(lambda x: torch.tanh(x)))
