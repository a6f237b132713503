"""Small and large messages that once blocked a server for seconds: refused, and others are served."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness import (
    DCE,
    PATIENCE,
    compile_request,
    connected,
    graph_of,
    http_status,
    paused_workers,
    refusal_of,
    refused,
    request_of_body,
    wait_until,
)
from torch.fx import GraphModule, symbolic_trace

from bench.abuses import ABUSES, send
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

MANY = 10**8
MB = 2**20


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    return launch_for_file(
        "--workers", "1", "--max-held-bytes", "3MiB", "--max-held-bytes-per-tenant", "3MiB"
    )


@pytest.mark.parametrize("name", ABUSES)
def test_an_abuse_is_answered_with_its_status(server: RunningServer, name: str) -> None:
    """And a hit is served after it."""
    abuse = ABUSES[name]
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.address, options) as channel:
        if abuse.code == "OK":
            assert send(channel, abuse, abuse.make())
        else:
            refusal = refused(lambda: send(channel, abuse, abuse.make()))
            assert refusal.code == abuse.code
            if abuse.code == "INVALID_ARGUMENT":
                assert list(refusal.fields) == [abuse.field or "request"]
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(1.0), DCE), timeout=PATIENCE)
        again = stub.Compile(compile_request(graph_of(1.0), DCE), timeout=PATIENCE)
        assert again.cache.status == pb.CACHE_STATUS_HIT
    assert server.process.poll() is None


def test_one_abuse_in_a_batch_does_not_end_it(server: RunningServer) -> None:
    bad = pb.CompileBatchRequest(
        request_id=7, request=pb.CompileRequest(passes=[pb.PassSpec(name="a" * 10_000)])
    )
    good = pb.CompileBatchRequest(request_id=8, request=compile_request(graph_of(1.0), DCE))
    with connected(server.address) as stub:
        answers = {a.request_id: a for a in stub.CompileBatch(iter([bad, good]), timeout=PATIENCE)}
    assert answers[7].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert "passes[0].name" in answers[7].error.message
    assert answers[8].response.module_key


def many(f: Callable[[torch.Tensor], Any]) -> GraphModule:
    """A graph whose input has 10^8 rows."""
    module = symbolic_trace(f)
    next(iter(module.graph.nodes)).meta["val"] = torch.empty(MANY, 2, device="meta")
    return module


@pytest.mark.parametrize(
    "f",
    [
        lambda x: torch.unbind(x)[0],
        lambda x: x.unbind()[0],
        lambda x: torch.split(x, 1)[0],
        lambda x: x.chunk(MANY)[0],
        lambda x: torch.tensor_split(x, MANY)[0],
        lambda x: torch.ops.aten.unbind.int(x)[0],
    ],
    ids=["unbind", "method", "split", "chunk", "tensor_split", "aten"],
)
@pytest.mark.parametrize("passes", ["shape_propagation", "functionalize"])
def test_a_node_with_too_many_outputs_is_refused(
    server: RunningServer, f: Callable[[torch.Tensor], Any], passes: str
) -> None:
    with connected(server.address) as stub:
        try:
            stub.Compile(compile_request(many(f), passes), timeout=30)
        except grpc.RpcError as error:
            refusal = refusal_of(error)
            assert refusal.code in ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT")
            assert "max_outputs" in refusal.message
        else:
            # Where a pass does not retrace such a graph, nothing is made of the call.
            assert passes == "functionalize"


def large(number: int) -> pb.CompileRequest:
    """A request of a megabyte for something that is not a graph, which a worker finds out at once."""
    return request_of_body(b"\xff" * MB + bytes([number]), None, DCE)


def test_requests_that_wait_are_bounded_in_bytes(server: RunningServer) -> None:
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(1.0), DCE), timeout=PATIENCE)
        with paused_workers(server.pid):
            calls = [stub.Compile.future(large(i), timeout=PATIENCE) for i in range(16)]
            wait_until(lambda: sum(call.done() for call in calls) >= 14, "refusals")
            # A hit is answered all the while.
            again = stub.Compile(compile_request(graph_of(1.0), DCE), timeout=PATIENCE)
            assert again.cache.status == pb.CACHE_STATUS_HIT
        refusals = [refusal_of(call) for call in calls if call.exception() is not None]
        assert len(refusals) == 16
        full = [refusal for refusal in refusals if refusal.code == "RESOURCE_EXHAUSTED"]
        assert len(full) == 14
        for refusal in full:
            assert "max_held_bytes" in refusal.message
            assert refusal.retry_after
        assert {refusal.code for refusal in refusals} == {"RESOURCE_EXHAUSTED", "INVALID_ARGUMENT"}
        # What was held is given back.
        assert refused(lambda: stub.Compile(large(99), timeout=PATIENCE)).code == "INVALID_ARGUMENT"


def test_probes_with_long_names_are_refused(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        good = health.Check(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
        assert good.status == health_pb2.HealthCheckResponse.SERVING
        refusal = refused(
            lambda: health.Check(
                health_pb2.HealthCheckRequest(service="a" * 1_000_000), timeout=PATIENCE
            )
        )
        assert refusal.code == "NOT_FOUND"
    assert http_status(server.metrics_url.replace("/metrics", "/healthz")) == 200
