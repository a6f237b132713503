"""The asynchronous client, method by method, and the errors that both clients raise."""

from __future__ import annotations

import asyncio
from xml.etree import ElementTree as ET

import grpc
import pytest
import torch
from google.rpc import error_details_pb2
from harness import CSE, DCE, graph_of, long_graph, paused_workers
from torch import nn
from torch.fx import symbolic_trace

import lazyfx
from lazyfx import errors
from lazyfx.shared.grpc_status import rich_status, status_to_error


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "2", "--max-nodes", "1000")


@pytest.fixture
async def connected_client(server):
    async with lazyfx.connect_async(server.address) as client:
        yield client


async def test_every_method_of_a_handle(connected_client, tmp_path):
    graph = symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.ReLU()))
    remote = await connected_client.compile(graph, [DCE, CSE])
    x = torch.randn(2, 3)
    assert (remote.cache.status, remote.cache.reason) == ("miss", "NEW_GRAPH")
    assert "def forward" in await remote.code()
    assert torch.equal(await remote(x), graph(x))
    assert torch.equal((await remote.callable_module())(x), graph(x))
    assert torch.equal((await remote.graph_module())(x), graph(x))
    assert ET.fromstring(await remote.picture()).tag.endswith("svg")
    assert (await remote.save_pickle(tmp_path / "p")).stat().st_size
    assert (await remote.save_package(tmp_path / "q")).stat().st_size
    assert len(remote.key) == len(remote.digest) == 64
    assert remote.report.recompiles.performed >= 1


async def test_every_method_of_a_client(connected_client):
    assert {p.name for p in await connected_client.passes()} >= {DCE, CSE}
    assert (await connected_client.server_info()).workers == 2
    assert (await connected_client.stats()).store.limit_bytes
    assert connected_client.address


async def test_concurrent_compiles(connected_client):
    graphs = [graph_of(float(i) + 0.125) for i in range(8)]
    handles = await asyncio.gather(*(connected_client.compile(g, [DCE]) for g in graphs))
    assert len({h.key for h in handles}) == 8
    again = await asyncio.gather(*(connected_client.compile(g, [DCE]) for g in graphs))
    assert {h.cache.status for h in again} == {"hit"}


async def test_many_over_one_stream(connected_client):
    jobs = [(graph_of(100.5), [DCE]), (graph_of(101.5), ["no_such_pass"]), (graph_of(102.5), [CSE])]
    found = {i: result async for i, result in connected_client.compile_many(jobs)}
    assert isinstance(found[1], errors.InvalidRequestError)
    x = torch.ones(2)
    for i in (0, 2):
        assert torch.equal(await found[i](x), jobs[i][0](x))


def test_many_over_one_stream_blocking(client):
    jobs = [(graph_of(200.5 + i), [DCE]) for i in range(5)]
    found = dict(client.compile_many(jobs))
    assert found.keys() == set(range(5))
    assert all(torch.equal(found[i](torch.ones(2)), jobs[i][0](torch.ones(2))) for i in found)


async def test_a_graph_that_changed_is_noticed_during_its_request(connected_client):
    graph = graph_of(7.75)
    first = await connected_client.compile(graph, [DCE])
    next(n for n in graph.graph.nodes if n.name == "mul").args = (
        next(iter(graph.graph.nodes)), 9.75,
    )  # fmt: skip
    second = await connected_client.compile(graph, [DCE])
    assert second.digest == lazyfx.digest(graph) != first.digest


async def test_concurrent_touches_fetch_once(connected_client):
    remote = await connected_client.compile(graph_of(8.75), [DCE])
    assert len(set(await asyncio.gather(*(remote.code() for _ in range(10))))) == 1
    assert remote.report.recompiles.performed == 1


def test_a_server_that_is_not_there(client):
    with lazyfx.connect("127.0.0.1:1", timeout=20) as absent:
        with pytest.raises(errors.UnavailableError) as caught:
            absent.compile(graph_of(), [DCE])
        assert caught.value.code == "UNAVAILABLE"
        with pytest.raises(errors.UnavailableError):
            absent.passes()


def test_a_server_that_went_away(launch):
    server = launch("--workers", "1")
    with lazyfx.connect(server.address) as client:
        remote = client.compile(graph_of(), [DCE])
        assert server.stop() == 0
        with pytest.raises(errors.UnavailableError):
            remote.code  # noqa: B018 - the touch is the test
        with pytest.raises(errors.UnavailableError):
            list(client.compile_many([(graph_of(2.0), [DCE])]))


def test_a_wrong_pass_names_its_field_and_the_right_one(client):
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.compile(graph_of(), ["dead_code_eliminaton"])
    assert DCE in str(caught.value)
    assert caught.value.code == "INVALID_ARGUMENT"
    assert caught.value.violations[0].field.startswith("passes[0]")


def test_a_wrong_option_names_its_field(client):
    with pytest.raises(errors.InvalidRequestError) as caught:
        client.compile(graph_of(), [lazyfx.pass_spec("shape_propagation", recompute="maybe")])
    assert "passes[0].options.recompute" in [v.field for v in caught.value.violations]


def test_a_graph_over_the_servers_bound(client):
    with pytest.raises(errors.InvalidRequestError, match="max_nodes"):
        client.compile(long_graph(2000), [DCE])


def test_an_unsupported_node_is_named_before_anything_is_sent(client):
    graph = graph_of(3.25)
    mul = next(n for n in graph.graph.nodes if n.name == "mul")
    mul.target = print
    before = client.stats().misses
    with pytest.raises(errors.UnsupportedGraphError) as caught:
        client.compile(graph, [DCE])
    assert caught.value.node == "mul"
    assert caught.value.remedy
    assert "print" in caught.value.reason
    assert client.stats().misses == before


def test_a_compile_that_takes_too_long(server, client):
    with paused_workers(server.pid), pytest.raises(errors.TimedOutError):
        client.compile(graph_of(4.25), [DCE], timeout=0.2)


def test_a_closed_client_has_its_own_error(server):
    client = lazyfx.connect(server.address)
    client.close()
    with pytest.raises(Exception, match="closed"):
        client.passes()


FAMILY = {
    "INVALID_ARGUMENT": errors.InvalidRequestError,
    "FAILED_PRECONDITION": errors.PreconditionError,
    "OUT_OF_RANGE": errors.PreconditionError,
    "NOT_FOUND": errors.NotFoundError,
    "UNAUTHENTICATED": errors.DeniedError,
    "PERMISSION_DENIED": errors.DeniedError,
    "RESOURCE_EXHAUSTED": errors.OverloadedError,
    "UNAVAILABLE": errors.UnavailableError,
    "DEADLINE_EXCEEDED": errors.TimedOutError,
}


@pytest.mark.parametrize("code", [c for c in grpc.StatusCode if c is not grpc.StatusCode.OK])
def test_each_status_has_an_error(code):
    error = status_to_error(rich_status(code, "why"))
    assert type(error) is FAMILY.get(code.name, errors.ServerFaultError)
    assert isinstance(error, errors.ServiceError)
    assert error.code == code.name
    assert str(error) == f"{code.name}: why"


def test_details_come_through():
    status = rich_status(
        grpc.StatusCode.FAILED_PRECONDITION,
        "why",
        violations=[errors.FieldViolation("a.b", "because")],
        missing=["blobs/00", "values/0/1"],
        retry_after=1.5,
    )
    error = status_to_error(status)
    assert isinstance(error, errors.MissingBlobsError)
    assert error.subjects == ("blobs/00", "values/0/1")
    wait = status_to_error(rich_status(grpc.StatusCode.UNAVAILABLE, "why", retry_after=1.5))
    assert wait.retry_after == 1.5
    unknown = rich_status(grpc.StatusCode.INVALID_ARGUMENT, "why")
    unknown.details.add().Pack(error_details_pb2.Help())
    assert isinstance(status_to_error(unknown), errors.InvalidRequestError)
