"""The cases of the hostile corpus that are no graphs: fields, bytes, tensors, transport."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch
from harness import (
    DCE,
    PATIENCE,
    Refusal,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    refused,
    request_of_body,
    total,
)
from raw_graphs import RawGraph, expanded
from watching import Watched

from lazyfx import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

_CORPUS = Path(__file__).parents[3] / "shared/hostile/corpus.json"
_CASES = json.loads(_CORPUS.read_text())["cases"] if _CORPUS.is_file() else []
_OTHERS = {case["id"]: case for case in _CASES if "graph" not in case["payload"]}

pytestmark = pytest.mark.skipif(not _CASES, reason="the hostile corpus is not on this machine")

FUNCTION, OPERATOR = graph_pb2.TARGET_KIND_FUNCTION, graph_pb2.TARGET_KIND_OPERATOR
PARAMETER = graph_pb2.TENSOR_ROLE_PARAMETER

# Cases of later features, and cases that have a test elsewhere.
SKIPPED = {
    "serial-014": "needs Inductor artifacts, which this version does not make",
    "resource-034": "needs the server's own deadline; today only jobs have one (job_timeout)",
    "resource-035": "needs staging quotas by tenant",
    "cache-015": "needs tenants",
    "cache-016": "needs tenants",
    "cache-017": "needs tenants",
    "cache-020": "needs tokens",
    "cache-021": "needs client certificates",
    "cache-022": "needs tokens",
    "cache-023": "needs the sandbox: workers are trusted until then",
    "cache-024": "needs the sandbox: workers are trusted until then",
    "cache-025": "needs signatures",
    "cache-026": "needs signatures",
    "cache-008": "tests/server/test_compile.py damages a store on disk",
    "resource-031": "tests/server/test_streams.py leaves uploads idle",
    "resource-036": "tests/server/test_streams.py sends chunks in every wrong order",
}


@pytest.fixture(scope="module")
def watched(launch_for_file, tmp_path_factory):
    server = launch_for_file("--workers", "1", "--job-timeout", "30")
    return Watched.start(server, tmp_path_factory.mktemp("marker"))


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
        told = watched.ask(body, None, *passes)
        assert isinstance(told, Refusal), told
        assert told.code in (codes or ("INVALID_ARGUMENT",)), told
        assert told.fields, told
        assert len(told.message) < 3000
    assert watched.entries() == entries


def must_refuse_graph(watched: Watched, graph: RawGraph, *passes: str) -> Refusal:
    entries = watched.entries()
    told = watched.ask(graph.serialized(), graph.names, *passes)
    assert isinstance(told, Refusal), told
    assert told.code == "INVALID_ARGUMENT", told
    assert told.fields, told
    assert watched.entries() == entries
    return told


# --- codegen -------------------------------------------------------------------------------


def unsayable(watched: Watched, case: Any) -> None:
    """The format has no field for it; one that it does not know is refused."""
    must_refuse(watched, [with_unknown_field(case["payload"])], "shape_propagation")


def hostile_target(watched: Watched, case: Any) -> None:
    graph = small()
    name = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.node("call_function", target=(FUNCTION, name), args=[{"$node": 0}])
    must_refuse_graph(watched, returning(graph, 1), "shape_propagation")


def hostile_argument_names(watched: Watched, case: Any) -> None:
    graph = returning(small())
    value = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.names.signature.argument_names.extend(["x", *value["in_spec_kwargs"]])
    graph.names.signature.positional_count = 1
    must_refuse_graph(watched, graph)


def hostile_tree_spec(watched: Watched, case: Any) -> None:
    graph = small()
    spec = graph_pb2.TreeSpec(kind=99)  # type: ignore[arg-type]
    graph.node("get_attr", attribute=graph.attribute("s", graph_pb2.Attribute(tree_spec=spec)))
    must_refuse_graph(watched, returning(graph, 1))
    unsayable(watched, case)


def hostile_child_name(watched: Watched, case: Any) -> None:
    graph = small()
    path = expanded(case["payload"]["value"], {"MARKER": str(watched.marker)})
    graph.node("get_attr", attribute=graph.tensor_attribute(path))
    must_refuse_graph(watched, returning(graph, 1))


def hostile_device(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node(
        "call_method",
        target=(graph_pb2.TARGET_KIND_METHOD, "to"),
        args=[{"$node": 0}, graph_pb2.Argument(device=graph.device(20))],
    )
    must_refuse_graph(watched, returning(graph, 1))


# --- memory: what constant folding would run ----------------------------------------------


def full(shape: list[int], value: float) -> tuple[str, list[Any]]:
    return "aten::full.default", [shape, value]


FOLDED: dict[str, list[tuple[str, list[Any]]]] = {
    "memory-003": [
        full([1, 1, 2, 2, 2], 1.0),
        ("aten::full.default", [[1, 1, 2, 2, 2], 2**40]),
        (
            "aten::max_pool3d_with_indices_backward.default",
            [
                {"$node": 1}, {"$node": 1}, [2, 2, 2], [2, 2, 2], [0, 0, 0], [1, 1, 1], False,
                {"$node": 2},
            ],
        ),
    ],
    "memory-004": [
        full([5, 1, 4], 0.0),
        full([1, 1], 2**40),
        ("aten::ctc_loss.IntList", [{"$node": 1}, {"$node": 2}, [5], [1]]),
    ],
    "memory-005": [
        full([4], 1.0),
        full([2], 2**30),
        (
            "aten::_segment_reduce_backward.default",
            [{"$node": 1}, {"$node": 1}, {"$node": 1}, "sum"],
        ),
    ],
    "memory-006": [
        full([1, 1], 2**40),
        full([1], 1.0),
        ("aten::sparse_coo_tensor.indices_size", [{"$node": 1}, {"$node": 2}, [4]]),
        ("aten::to_dense.default", [{"$node": 3}]),
    ],
    "memory-007": [
        full([1, 1], 1.0),
        full([1], 2**40),
        (
            "aten::_embedding_bag_dense_backward.default",
            [
                {"$node": 1}, {"$node": 2}, {"$node": 2}, {"$node": 2}, {"$node": 2}, 4, False, 0,
                None,
            ],
        ),
    ],
    "memory-009": [("aten::empty.memory_format", [[65536]])],
    "memory-011": [("aten::rand.default", [[4]])],
    "resource-018": [full([1], 2**45), ("aten::bincount.default", [{"$node": 1}])],
    "resource-019": [("aten::empty.memory_format", [[2_000_000_000]])],
    "resource-020": [full([2500, 2500], 1.0), ("aten::linalg_svd.default", [{"$node": 1}])],
}  # fmt: skip


def dangerous_to_fold(watched: Watched, case: Any) -> None:
    """Folding leaves it alone, or the request alone is refused; nothing runs, nothing dies."""
    graph = small()
    for name, args in FOLDED[case["id"]]:
        last = graph.node("call_function", target=(OPERATOR, name), args=args)
    graph.node("output", args=[[{"$node": 0}, {"$node": last}]])
    graph.finished()
    for passes in (("constant_fold",), ("shape_propagation", "constant_fold")):
        outcome = watched.ask(graph.serialized(), graph.names, *passes)
        if isinstance(outcome, Refusal):
            assert outcome.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), outcome
            continue
        operator = FOLDED[case["id"]][-1][0].partition("::")[2].partition(".")[0]
        with connected(watched.server.address) as stub:
            code = artifact(stub, outcome.module_key, pb.ARTIFACT_KIND_CODE).data.decode()
        assert operator in code
        assert sum(constant.size_bytes for constant in outcome.constants) < 2**20


# --- serialized things where a graph or a tensor should be ---------------------------------


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
    told = watched.send(request)
    assert isinstance(told, Refusal), told
    assert told.code == "INVALID_ARGUMENT", told
    assert watched.entries() == entries
    return told


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


# --- structure ----------------------------------------------------------------------------


def paths_in_each_others_way(watched: Watched, case: Any) -> None:
    graph = small()
    for path in case["payload"]["attrs"]:
        graph.node("get_attr", attribute=graph.tensor_attribute(path))
    must_refuse_graph(watched, returning(graph, 1))


def paths_into_a_modules_insides(watched: Watched, case: Any) -> None:
    for path in (*case["payload"]["attrs"], "training", "forward", "a.training", "a._modules.x"):
        graph = small()
        graph.node("get_attr", attribute=graph.tensor_attribute(path))
        must_refuse_graph(watched, returning(graph, 1))


def lying_metadata(watched: Watched, case: Any) -> None:
    graph = RawGraph()
    honest = graph.tensor(shape=[2])
    graph.body.values.add(tensor=honest)
    graph.node("placeholder", name="x", value=0)
    lie = graph.tensor(shape=[7])
    graph.body.values.add(tensor=lie)
    graph.node(
        "call_function", target=(OPERATOR, "aten::add.Tensor"),
        args=[{"$node": 0}, {"$node": 0}], value=1,
    )  # fmt: skip
    returning(graph, 1)
    # What a caller says of its own graph is in its own key; asked to recompute, nothing is trusted.
    request = request_of_body(graph.serialized(), graph.names, "shape_propagation")
    request.passes[0].options.add(name="recompute", value=pb.OptionValue(boolean=True))
    outcome = watched.send(request)
    assert isinstance(outcome, pb.CompileResponse), outcome
    with connected(watched.server.address) as stub:
        data = artifact(stub, outcome.module_key, pb.ARTIFACT_KIND_GRAPH).data
    body = graph_pb2.GraphBody.FromString(graph_pb2.CompiledGraph.FromString(data).graph.body)
    assert [list(t.shape) for t in body.tensors] == [[2]]


def argument_without_a_kind(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=[graph_pb2.Argument()])
    must_refuse_graph(watched, returning(graph, 1))


def mutation_is_kept(watched: Watched, case: Any) -> None:
    """Writing in place is fine; what is wrong is to lose it."""
    graph = small()
    target = (OPERATOR, "aten::add_.Tensor")
    for _ in range(2):
        graph.node("call_function", target=target, args=[{"$node": 0}, 1])
    outcome = watched.ask(
        returning(graph).serialized(), graph.names, DCE, "common_subexpression_elimination"
    )
    assert isinstance(outcome, pb.CompileResponse), outcome
    assert outcome.report.nodes_after == 4


# --- resources ----------------------------------------------------------------------------


def groups(watched: Watched, case: Any) -> None:
    repeat = case["payload"]["$repeat"]
    must_refuse(watched, [bytes.fromhex(repeat["value"]) * repeat["count"]])


def doubled_field(watched: Watched, case: Any) -> None:
    body = wire.encode(graph_of(3.5)).body
    call = graph_pb2.GraphBody.FromString(body).calls[1]
    once = call.SerializeToString(deterministic=True)
    field = graph_pb2.Call(opcode=call.opcode).SerializeToString()
    twice = field + once
    assert len(twice) < 128
    row = b"\x42" + bytes([len(once)]) + once
    assert body.count(row) == 1
    must_refuse(watched, [body.replace(row, b"\x42" + bytes([len(twice)]) + twice)])


def deep_nesting(watched: Watched, case: Any) -> None:
    depth = case["payload"]["$nest"]["depth"]
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=["@@"])
    body = returning(graph, 1).serialized()
    text = graph_pb2.Argument(text=0).SerializeToString()
    nested = graph_pb2.Argument(none=graph_pb2.Empty()).SerializeToString()
    for _ in range(depth):
        items = b"\x0a" + varint(len(nested)) + nested
        nested = b"\x42" + varint(len(items)) + items
    arguments = b"\x1a" + varint(len(text)) + text
    assert body.count(arguments) == 1
    call = graph.body.calls[1].SerializeToString(deterministic=True)
    longer = call.replace(arguments, b"\x1a" + varint(len(nested)) + nested)
    row = b"\x42" + varint(len(call)) + call
    must_refuse(watched, [body.replace(row, b"\x42" + varint(len(longer)) + longer)])


def varint(value: int) -> bytes:
    out = b""
    while value >= 128:
        out += bytes([value % 128 + 128])
        value //= 128
    return out + bytes([value])


def names_that_count(watched: Watched, case: Any) -> None:
    """Names that make a naive renamer quadratic are used as they are."""
    graph = small()
    names = [f"x_{i}" for i in range(1, 5001)] + [f"x_0{i}" for i in range(1, 501)]
    del graph.given.stems[:], graph.given.stem[:], graph.given.suffix[:]
    call = graph_pb2.Call(opcode=graph_pb2.OPCODE_CALL_FUNCTION, target=1)
    graph.target(FUNCTION, "torch.neg")
    call.args.add(operand=graph_pb2.Empty())
    graph.body.calls.add().CopyFrom(call)
    graph.columns.calls.extend([1] * len(names))
    graph.columns.operands.extend([1] * len(names))
    graph.body.calls.add(opcode=graph_pb2.OPCODE_OUTPUT).args.add(operand=graph_pb2.Empty())
    graph.columns.calls.append(2)
    graph.columns.operands.append(1)
    from lazyfx.wire.names import write_names

    write_names(["x", *names, "output"], graph.given)
    graph.finished()
    outcome = watched.ask(graph.serialized(), graph.names, DCE)
    assert isinstance(outcome, pb.CompileResponse), outcome


def string_bomb(watched: Watched, case: Any) -> None:
    """A long string that many nodes print, in one literal or in many calls."""
    text = "a" * 2**20
    graph = small()
    references = [graph_pb2.Argument(text=graph.text(text)) for _ in range(10_000)]
    graph.node("call_function", target=(FUNCTION, "torch._assert"), args=[{"$node": 0}, references])
    must_refuse_graph(watched, returning(graph, 0))
    many = small()
    many.node("call_function", target=(FUNCTION, "torch._assert"), args=[{"$node": 0}, [text]])
    again = small()
    again.node("call_function", target=(FUNCTION, "torch._assert"), args=[True, text])
    again.columns.calls.extend([1] * 20_000)
    again.given.stem.extend([0] * 20_000)
    again.given.suffix.extend(range(1, 20_001))
    again._node += 20_000
    must_refuse_graph(watched, returning(again, 0))


def long_names(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("call_function", target=(FUNCTION, "torch.neg"), args=[{"$node": 0}])
    graph.columns.calls.extend([1] * 100_000)
    graph.columns.operands.extend([1] * 100_000)
    graph.given.stems[1] = "a" * 1000
    graph.given.stem.extend([1] * 100_000)
    graph.given.suffix.extend(range(1, 100_001))
    graph._node += 100_000
    must_refuse_graph(watched, returning(graph, 1))


def long_path(watched: Watched, case: Any) -> None:
    graph = small()
    graph.node("get_attr", attribute=graph.tensor_attribute("a." * 100_000 + "a"))
    must_refuse_graph(watched, returning(graph, 1))


def power_bomb(watched: Watched, case: Any) -> None:
    Op = graph_pb2
    graph = small()
    add = graph.body.expressions.add
    add(operator=Op.SYMBOLIC_OPERATOR_INTEGER, integer=2)
    add(operator=Op.SYMBOLIC_OPERATOR_INTEGER, integer=10)
    add(operator=Op.SYMBOLIC_OPERATOR_POWER, operands=[1, 1])
    add(operator=Op.SYMBOLIC_OPERATOR_POWER, operands=[0, 2])
    graph.node(
        "call_method", target=(Op.TARGET_KIND_METHOD, "view"),
        args=[{"$node": 0}, Op.Argument(expression=3)],
    )  # fmt: skip
    must_refuse_graph(watched, returning(graph, 1), "shape_propagation")


def expression_as_text(watched: Watched, case: Any) -> None:
    unsayable(watched, case)
    graph = small()
    text = expanded(case["payload"]["expr"], {"MARKER": str(watched.marker)})
    graph.node(
        "call_method", target=(graph_pb2.TARGET_KIND_METHOD, "view"), args=[{"$node": 0}, text]
    )
    watched.ask(returning(graph, 1).serialized(), graph.names, "shape_propagation")


def compressed_body(watched: Watched, case: Any) -> None:
    header = bytes.fromhex("28b52ffd")
    must_refuse(watched, [header + bytes(8000), header + b"\xe0" + bytes(7) + b"\x20\1\0\0"])


def gzip_bomb(watched: Watched, case: Any) -> None:
    request = compile_request(graph_of(1.25))
    request.graph.body = bytes(100 * 2**20)
    options = [("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(watched.server.address, options=options) as channel:
        stub = pb_stub(channel)
        told = refused(
            lambda: stub.Compile(request, compression=grpc.Compression.Gzip, timeout=PATIENCE)
        )
    assert told.code == "RESOURCE_EXHAUSTED"


def pb_stub(channel: grpc.Channel) -> Any:
    from lazyfx.v1.compiler_pb2_grpc import GraphCompilerStub

    return GraphCompilerStub(channel)


def rewrite_that_feeds_itself(watched: Watched, case: Any) -> None:
    module = torch.fx.symbolic_trace(lambda x: torch.neg(torch.neg(x)))
    pattern = torch.fx.symbolic_trace(lambda x: torch.neg(x))
    replacement = torch.fx.symbolic_trace(lambda x: torch.neg(torch.neg(torch.neg(x))))
    request = compile_request(module, "replace_pattern")
    request.passes[0].rewrites.add(
        pattern=wire.encode(pattern).message(), replacement=wire.encode(replacement).message()
    )
    outcome = watched.send(request)
    if isinstance(outcome, Refusal):
        assert outcome.code in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"), outcome
    else:
        assert outcome.report.nodes_after < 100


def many_passes(watched: Watched, case: Any) -> None:
    entries = watched.entries()
    told = watched.send(compile_request(graph_of(1.25), *[DCE] * 10_000))
    assert isinstance(told, Refusal)
    assert told.code == "INVALID_ARGUMENT"
    assert "passes" in told.fields
    assert watched.entries() == entries


def odd_pass(watched: Watched, case: Any) -> None:
    payload = case["payload"]
    entries = watched.entries()
    for name in (payload["pass"], "os.system", "__class__", "", "a" * 10**6, DCE):
        request = compile_request(graph_of(1.25), name)
        for option, value in payload["options"].items():
            request.passes[0].options.add(name=option, value=pb.OptionValue(text=value))
        told = watched.send(request)
        assert isinstance(told, Refusal)
        assert told.code == "INVALID_ARGUMENT"
        assert told.fields
        assert len(told.message) < 3000
    assert watched.entries() == entries


def new_labels(watched: Watched, case: Any) -> None:
    for i in range(20):
        watched.send(compile_request(graph_of(1.25), f"random_{i}"))
    text = json.dumps([str(key) for key in metrics(watched.server.metrics_url)])
    assert "random_" not in text


def great_metadata(watched: Watched, case: Any) -> None:
    with connected(watched.server.address) as stub:
        metadata = [("x-large", "a" * case["payload"]["metadata_bytes"])]
        told = refused(lambda: stub.GetStats(pb.GetStatsRequest(), metadata=metadata))
    assert told.code == "RESOURCE_EXHAUSTED"


# --- cache --------------------------------------------------------------------------------


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
            told = refused(
                lambda: artifact(stub, identity.encode(), pb.ARTIFACT_KIND_CODE)  # noqa: B023
            )
            assert told.code == "INVALID_ARGUMENT"
            digest = graph_pb2.Digest(sha256=identity.encode())
            told = refused(
                lambda: stub.FindMissingBlobs(pb.FindMissingBlobsRequest(digests=[digest]))  # noqa: B023
            )
            assert told.code == "INVALID_ARGUMENT"


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
    keyed = [adding({key: 0, "b": 0}) for key in (True, 1, "1")]
    assert len(keys_of(watched, keyed)) == 3


def distinct_targets(watched: Watched, case: Any) -> None:
    names = ("torch.add", "operator.add", "torch.Tensor.add")
    assert len(keys_of(watched, [adding(1, target=name) for name in names])) == 3


def distinct_strings(watched: Watched, case: Any) -> None:
    graphs = [adding(strings) for strings in case["payload"]["strings"]]
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
            told = refused(lambda: list(call(iter([b""]), timeout=PATIENCE)))  # noqa: B023
            assert told.code == "UNIMPLEMENTED"


def training_state(watched: Watched, case: Any) -> None:
    """A batch norm in training mode keeps its state: passes never run it."""
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(3)).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    request = compile_request(torch.fx.symbolic_trace(model), "shape_propagation", "constant_fold")
    outcome = watched.send(request)
    told = isinstance(outcome, pb.CompileResponse) or (
        outcome.code in ("INVALID_ARGUMENT", "FAILED_PRECONDITION")
    )
    assert told, outcome
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


HANDLERS: dict[str, Callable[[Watched, Any], None]] = {
    **dict.fromkeys(FOLDED, dangerous_to_fold),
    **dict.fromkeys(
        ["codegen-039", "codegen-040", "codegen-041", "codegen-050", "codegen-051",
         "codegen-052", "codegen-055", "codegen-056", "codegen-057"], unsayable,
    ),
    "codegen-042": hostile_target,
    "codegen-044": hostile_argument_names,
    "codegen-045": hostile_tree_spec,
    "codegen-047": hostile_tree_spec,
    "codegen-060": hostile_child_name,
    "codegen-061": hostile_device,
    "target-078": training_state,
    **dict.fromkeys(
        ["serial-003", "serial-007", "serial-008", "serial-009", "serial-010", "serial-012",
         "serial-015", "serial-016", "serial-017"], serialized_body,
    ),
    "serial-004": tensor_that_is_a_pickle,
    "serial-018": tensor_of_many_dimensions,
    "serial-019": tensor_of_a_terabyte,
    "serial-020": tensor_of_other_size,
    "serial-022": tensor_with_negative_strides,
    "serial-023": tensor_of_wild_bools,
    "serial-025": module_by_path,
    "serial-026": module_with_odd_state,
    "serial-029": module_of_great_size,
    "serial-030": module_of_other_shape,
    "structure-014": paths_in_each_others_way,
    "structure-015": paths_into_a_modules_insides,
    "structure-016": lying_metadata,
    "structure-017": argument_without_a_kind,
    "structure-019": mutation_is_kept,
    "resource-002": groups,
    "resource-005": doubled_field,
    "resource-008": deep_nesting,
    "resource-009": deep_nesting,
    "resource-010": names_that_count,
    "resource-011": string_bomb,
    "resource-012": long_path,
    "resource-015": tensor_of_many_dimensions,
    "resource-021": power_bomb,
    "resource-023": expression_as_text,
    "resource-024": expression_as_text,
    **dict.fromkeys(
        ["resource-026", "resource-027", "resource-028", "resource-029"], compressed_body
    ),
    "resource-030": gzip_bomb,
    "resource-039": rewrite_that_feeds_itself,
    "resource-040": many_passes,
    "resource-041": odd_pass,
    "resource-044": new_labels,
    "resource-045": great_metadata,
    "cache-002": no_put,
    "cache-004": odd_ids,
    "cache-005": odd_ids,
    "cache-006": odd_ids,
    "cache-009": distinct_literals,
    "cache-012": distinct_targets,
    "cache-013": distinct_strings,
    "cache-014": whole_key,
    "cache-027": no_reflection,
}  # fmt: skip


@pytest.mark.parametrize("case_id", _OTHERS)
def test_request(watched, case_id):
    if case_id in SKIPPED:
        pytest.skip(SKIPPED[case_id])
    HANDLERS[case_id](watched, _OTHERS[case_id])
    watched.check_unharmed()


def test_every_case_is_sent_or_skipped_with_a_reason():
    assert set(_OTHERS) == set(HANDLERS) | set(SKIPPED)
    assert not set(HANDLERS) & set(SKIPPED)


def test_long_names_cannot_make_a_long_source(watched):
    long_names(watched, None)
    watched.check_unharmed()


def test_no_request_hurt_the_server(watched):
    samples = metrics(watched.server.metrics_url)
    assert total(samples, "lazyfx_requests_total", code="INTERNAL") == 0
    assert total(samples, "lazyfx_requests_total", code="UNKNOWN") == 0
    assert total(samples, "lazyfx_worker_restarts_total") == 0
