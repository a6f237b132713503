"""Hostile cases of serialized things where a graph, a tensor or a module should be."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from harness import (
    Refusal,
    connected,
    request_of_body,
)
from raw_graphs import RawGraph, expanded
from sending import (
    FUNCTION,
    OPERATOR,
    must_refuse,
    must_refuse_graph,
    returning,
    small,
)
from watching import Watched

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2


class Touch:
    """A pickle of it touches a file when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def archive(marker: Path, members: dict[str, bytes]) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
        file.writestr("data.pkl", pickle.dumps(Touch(marker)))
    return data.getvalue()


def serialized_body(watched: Watched, case: Any) -> None:
    saved = io.BytesIO()
    torch.save(Touch(watched.marker), saved)
    member = case["payload"].get("member", "module/data.pkl")
    content = json.dumps(expanded(case["payload"], {"MARKER": str(watched.marker)})).encode()
    must_refuse(
        watched,
        [
            pickle.dumps(Touch(watched.marker)),
            pickle.dumps(Touch(watched.marker), protocol=0),
            saved.getvalue(),
            archive(watched.marker, {member: content}),
            content,
        ],
        "shape_propagation",
    )


def bound_values(watched: Watched, data: bytes, **tensor: Any) -> Refusal:
    """Bind these bytes as the values of a buffer that constant folding reads."""
    graph = RawGraph()
    index = graph.tensor(**tensor)
    row = graph_pb2.TensorAttribute(tensor=index, role=graph_pb2.TENSOR_ROLE_BUFFER)
    graph.node("get_attr", attribute=graph.attribute("b", graph_pb2.Attribute(tensor=row)))
    graph.node("call_function", target=(OPERATOR, "aten::clone.default"), args=[{"$node": 0}])
    graph.node("output", args=[[{"$node": 1}]])
    graph.finished()
    digest = graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))
    with connected(watched.server.address) as stub:
        stub.UploadBlobs(iter([pb.UploadBlobsRequest(digest=digest, data=data)]))
    entries = watched.entries()
    request = request_of_body(graph.serialized(), graph.names, "constant_fold")
    request.values.add(graph=0, attribute=0, content=digest)
    outcome = watched.send(request)
    assert isinstance(outcome, Refusal), outcome
    assert outcome.code == "INVALID_ARGUMENT", outcome
    assert watched.entries() == entries
    return outcome


def tensor_that_is_a_pickle(watched: Watched, case: Any) -> None:
    saved = io.BytesIO()
    torch.save(Touch(watched.marker), saved)
    bound_values(watched, saved.getvalue(), shape=[4])


def tensor_of_other_size(watched: Watched, case: Any) -> None:
    bound_values(watched, bytes(range(16)), shape=[1000], stride=[1])


def tensor_of_a_terabyte(watched: Watched, case: Any) -> None:
    bound_values(watched, bytes(range(1, 17)), shape=[274877906944])


def tensor_of_wild_bools(watched: Watched, case: Any) -> None:
    bound_values(watched, b"\xff\x02", shape=[2], dtype=graph_pb2.DTYPE_BOOL)


def tensor_described(watched: Watched, **tensor: Any) -> None:
    graph = small()
    graph.node("get_attr", attribute=graph.tensor_attribute("w", **tensor))
    must_refuse_graph(watched, returning(graph, 1), "shape_propagation")
    value = small()
    row = value.tensor(**tensor)
    value.body.values.add(tensor=row)
    value.node("call_function", target=(FUNCTION, "torch.neg"), args=[{"$node": 0}], value=0)
    must_refuse_graph(watched, returning(value, 1), "shape_propagation")


def tensor_of_many_dimensions(watched: Watched, case: Any) -> None:
    tensor_described(watched, shape=[1] * 100_000)


def tensor_with_negative_strides(watched: Watched, case: Any) -> None:
    payload = case["payload"]
    tensor_described(watched, shape=payload["shape"], stride=payload["strides"])
    tensor_described(watched, shape=[2], stride=[1], storage_offset=payload["offset"])
    tensor_described(watched, shape=[2**62, 2**62])


def leaf(kind: str, options: dict[str, Any], tensors: dict[str, dict[str, Any]]) -> RawGraph:
    """A call of a leaf module."""
    graph = small()
    row = graph_pb2.LeafModule(type=kind)
    for name in sorted(options):
        row.options.add(name=name, value=graph.argument(options[name], []))
    for place, name in enumerate(sorted(tensors)):
        row.tensors.add(name=name, attribute=1 + place)
    number = graph.attribute("m", graph_pb2.Attribute(module=row))
    for name in sorted(tensors):
        graph.tensor_attribute(f"m.{name}", storage=len(graph.columns.attributes) - 1,
                               **tensors[name])  # fmt: skip
    graph.node("call_module", attribute=number, args=[{"$node": 0}])
    return returning(graph, 1)


def module_by_path(watched: Watched, case: Any) -> None:
    for name in (case["payload"]["class"], "torch.nn.ReLU", "nn.ReLU", "__import__", "Module"):
        must_refuse_graph(watched, leaf(name, {}, {}))


def module_with_odd_state(watched: Watched, case: Any) -> None:
    for name in (*case["payload"]["state"], "__class__", "training"):
        must_refuse_graph(watched, leaf("ReLU", {"inplace": False}, {name: {"shape": [1]}}))
        must_refuse_graph(watched, leaf("ReLU", {name: "callable"}, {}))


def module_of_great_size(watched: Watched, case: Any) -> None:
    options = case["payload"]["kwargs"]
    must_refuse_graph(watched, leaf("Embedding", options, {}))
    must_refuse_graph(watched, leaf("Embedding", options, {"weight": {"shape": [2, 1]}}))


def module_of_other_shape(watched: Watched, case: Any) -> None:
    options = {**case["payload"]["kwargs"], "bias": False}
    weight = {"shape": [2, 3], "dtype": graph_pb2.DTYPE_FLOAT16}
    must_refuse_graph(watched, leaf("Linear", options, {"weight": weight}), "shape_propagation")
