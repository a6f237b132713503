"""Hostile cases of the cache: ids, keys, what differs and what must not."""

from __future__ import annotations

from typing import Any

import grpc
from harness import (
    DCE,
    PATIENCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    refused,
)
from raw_graphs import RawGraph
from sending import (
    FUNCTION,
    returning,
    small,
    unsayable,
)
from watching import Watched

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


def no_put(watched: Watched, case: Any) -> None:
    """There is no call that stores a result, and a blob under a key's name is only a blob."""
    unsayable(watched, case)
    with grpc.insecure_channel(watched.server.address) as channel:
        call = channel.unary_unary("/lazyfx.v1.GraphCompiler/PutModule")
        assert refused(lambda: call(b"", timeout=PATIENCE)).code == "UNIMPLEMENTED"


def odd_ids(watched: Watched, case: Any) -> None:
    payload = case["payload"]
    for identity in payload.get("ids", [payload.get("id")]):
        with connected(watched.server.address) as stub:
            refusal = refused(
                lambda: artifact(stub, identity.encode(), pb.ARTIFACT_KIND_CODE)  # noqa: B023
            )
            assert refusal.code == "INVALID_ARGUMENT"
            digest = graph_pb2.Digest(sha256=identity.encode())
            refusal = refused(
                lambda: stub.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=[digest]))  # noqa: B023
            )
            assert refusal.code == "INVALID_ARGUMENT"


def keys_of(watched: Watched, graphs: list[RawGraph]) -> set[bytes]:
    found = set()
    for graph in graphs:
        outcome = watched.ask(graph.serialized(), graph.names)
        assert isinstance(outcome, pb.CompileResponse), outcome
        found.add(outcome.module_key)
    return found


def adding(*args: Any, target: str = "torch.add") -> RawGraph:
    graph = small()
    graph.node("call_function", target=(FUNCTION, target), args=[{"$node": 0}, *args])
    return returning(graph, 1)


def distinct_literals(watched: Watched, case: Any) -> None:
    assert len(keys_of(watched, [adding(*args) for args in case["payload"]["args"]])) == 3
    # operator.eq takes whatever can be compared: torch.add takes neither dictionaries nor text.
    keyed = [adding({key: 0, "b": 0}, target="operator.eq") for key in (True, 1, "1")]
    assert len(keys_of(watched, keyed)) == 3


def distinct_targets(watched: Watched, case: Any) -> None:
    names = ("torch.add", "operator.add", "torch.Tensor.add")
    assert len(keys_of(watched, [adding(1, target=name) for name in names])) == 3


def distinct_strings(watched: Watched, case: Any) -> None:
    graphs = [adding(strings, target="operator.eq") for strings in case["payload"]["strings"]]
    assert len(keys_of(watched, graphs)) == 2


def whole_key(watched: Watched, case: Any) -> None:
    """Graph, passes, options and values each change the key."""
    bare = compile_request(graph_of(8.5))
    requests = [bare, compile_request(graph_of(8.5), DCE), compile_request(graph_of(9.5), DCE)]
    with connected(watched.server.address) as stub:
        described = stub.ListPasses(pb.ListPassesRequest()).passes
        for one in described:
            for option in one.options:
                if option.type == "bool":
                    other = compile_request(graph_of(8.5), one.name)
                    value = pb.OptionValue(boolean=option.default_value != "True")
                    other.passes[0].options.add(name=option.name, value=value)
                    requests += [other, compile_request(graph_of(8.5), one.name)]
        keys = {stub.Compile(request).module_key for request in requests}
    assert len(keys) == len({request.SerializeToString() for request in requests})


def no_reflection(watched: Watched, case: Any) -> None:
    with grpc.insecure_channel(watched.server.address) as channel:
        for version in ("v1", "v1alpha"):
            method = f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo"
            call = channel.stream_stream(method)
            refusal = refused(lambda: list(call(iter([b""]), timeout=PATIENCE)))  # noqa: B023
            assert refusal.code == "UNIMPLEMENTED"
