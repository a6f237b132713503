"""Every refusal of a graph names the field and the node, by its caller's name."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import grpc
import pytest
import torch
from server.harness import connected, request_of_body
from torch import nn
from torch.fx import GraphModule, symbolic_trace

import lazyfx
from lazyfx import errors
from lazyfx.shared import wire
from lazyfx.shared.grpc_status import to_error
from lazyfx.v1 import compiler_pb2
from lazyfx.v1 import graph_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

Edit = Callable[[pb.GraphBody, pb.Presentation], object]

NODES = ("speed", "layer", "weighed", "scale", "product", "output")
LAYER, WEIGHED, SCALE, PRODUCT = 1, 2, 3, 4


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, speed: torch.Tensor) -> torch.Tensor:
        weighed = torch.cat([self.layer(speed), speed], dim=0, out=None)
        return weighed * self.scale


def _module(function: Callable[..., object] | nn.Module) -> GraphModule:
    module = symbolic_trace(function)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            node.meta["val"] = torch.empty(2, 3, device="meta")
    return module


@pytest.fixture(scope="module")
def encoded() -> wire.EncodedGraph:
    module = _module(_Net())
    for node, name in zip(module.graph.nodes, NODES, strict=True):
        node.name = name
    return wire.encode(module)


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer]) -> RunningServer:
    return launch_for_file(
        "--workers", "1", "--max-elements", "20", "--max-string-bytes", "30", "--max-outputs", "10"
    )


def call_of(body: pb.GraphBody, node: int) -> pb.Call:
    """The row of the call that a node makes."""
    return body.calls[body.graphs[0].calls[node]]


def target_of(body: pb.GraphBody, node: int) -> pb.Target:
    return body.targets[call_of(body, node).target - 1]


def client_error(server: RunningServer, body: bytes, names: pb.Presentation) -> errors.ServiceError:
    """The error that our client raises for the refusal of a graph."""
    return _refused(server, request_of_body(body, names, "shape_propagation"))


def _other_target(kind: int, name: str, node: int = WEIGHED) -> Edit:
    def edit(body: pb.GraphBody, _names: pb.Presentation) -> None:
        target_of(body, node).CopyFrom(pb.Target(kind=kind, name=name))

    return edit


def _argument(body: pb.GraphBody, row: pb.Argument) -> None:
    call_of(body, WEIGHED).kwargs[0].value.CopyFrom(row)


def _as_argument(body: pb.GraphBody, _names: pb.Presentation) -> None:
    """A callable as an argument, behind the target of the call itself."""
    place = call_of(body, WEIGHED).target
    body.targets.insert(place, pb.Target(kind=pb.TARGET_KIND_FUNCTION, name="os.system"))
    call_of(body, PRODUCT).target += 1
    _argument(body, pb.Argument(target=place))


def _attributes(body: pb.GraphBody) -> list[pb.Attribute]:
    return list(body.graphs[0].attributes)


def _rename(node: int, name: str) -> Edit:
    return lambda _, names: names.graphs[0].stems.__setitem__(names.graphs[0].stem[node], name)


FUNCTION, METHOD = pb.TARGET_KIND_FUNCTION, pb.TARGET_KIND_METHOD
# What is spoiled, the field that is named, and the node.
KINDS: dict[str, tuple[Edit, str, int | None]] = {
    "an opcode": (lambda b, _: setattr(call_of(b, WEIGHED), "opcode", 9),
                  "graph.calls[2]", WEIGHED),
    "no target": (lambda b, _: call_of(b, WEIGHED).ClearField("target"),
                  "graph.calls[2].target", WEIGHED),
    "a target for an output": (lambda b, _: setattr(call_of(b, 5), "target", 1),
                               "graph.calls[5].target", 5),
    "a method as a function": (_other_target(METHOD, "relu"), "graph.calls[2].target", WEIGHED),
    "a function outside of the table": (
        _other_target(FUNCTION, "os.system"), "graph.graphs[0].calls[2]", WEIGHED),
    "an operator that is not there": (
        _other_target(pb.TARGET_KIND_OPERATOR, "nowhere::nothing.default"),
        "graph.graphs[0].calls[2]", WEIGHED),
    "a higher-order operator": (
        _other_target(pb.TARGET_KIND_HIGHER_ORDER_OPERATOR, "run_const_graph"),
        "graph.graphs[0].calls[2]", WEIGHED),
    "a callable that is an argument": (_as_argument, "graph.graphs[0].calls[2]", WEIGHED),
    "a target without a name": (
        lambda b, _: target_of(b, WEIGHED).ClearField("name"), "graph.targets[0]", WEIGHED),
    "arguments that do not fit": (
        _other_target(FUNCTION, "torch.relu"), "graph.graphs[0].calls[2]", WEIGHED),
    "arguments that cannot be written": (
        _other_target(FUNCTION, "operator.add"), "graph.graphs[0].calls[2]", WEIGHED),
    "an argument without a kind": (
        lambda b, _: _argument(b, pb.Argument()), "graph.calls[2].kwargs", WEIGHED),
    "a text out of range": (
        lambda b, _: _argument(b, pb.Argument(text=99)), "graph.strings", WEIGHED),
    "a device out of range": (
        lambda b, _: _argument(b, pb.Argument(device=99)), "graph.devices", WEIGHED),
    "an expression out of range": (
        lambda b, _: _argument(b, pb.Argument(expression=9)), "graph.expressions[9]", WEIGHED),
    "a process group out of range": (
        lambda b, _: _argument(b, pb.Argument(process_group=9)), "graph.calls[2].kwargs", WEIGHED),
    "a NaN of another kind": (
        lambda b, _: _argument(b, pb.Argument(floating=-float("nan"))),
        "graph.calls[2].kwargs", WEIGHED),
    "unsorted keywords": (
        lambda b, _: call_of(b, WEIGHED).kwargs.reverse(), "graph.strings", WEIGHED),
    "stars on a call": (
        lambda b, _: setattr(call_of(b, WEIGHED), "stars", 1), "graph.calls[2].stars", WEIGHED),
    "a call out of range": (
        lambda b, _: b.graphs[0].calls.__setitem__(WEIGHED, 99), "graph.graphs[0].calls", WEIGHED),
    "a reference to itself": (
        lambda b, _: b.graphs[0].operands.__setitem__(1, 0), "graph.graphs[0].operands", LAYER),
    "an attribute out of order": (
        lambda b, _: b.graphs[0].operands.__setitem__(0, 2), "graph.graphs[0].attributes", LAYER),
    "a module of another class": (
        lambda b, _: setattr(_attributes(b)[0].module, "type", "Evil"),
        "graph.graphs[0].attributes[0].module.type", LAYER),
    "an option that is not there": (
        lambda b, _: setattr(_attributes(b)[0].module.options[0], "name", "a"),
        "graph.graphs[0].attributes[0].module.options", LAYER),
    "a tensor without a role": (
        lambda b, _: _attributes(b)[-1].tensor.ClearField("role"),
        "graph.graphs[0].attributes[3].role", SCALE),
    "an attribute without a kind": (
        lambda b, _: _attributes(b)[-1].Clear(), "graph.graphs[0].attributes[3]", SCALE),
    "a tensor without a dtype": (
        lambda b, _: b.tensors[0].ClearField("dtype"), "graph.tensors[0]", 0),
    "a tensor that is too large": (
        lambda b, _: b.tensors[0].shape.__setitem__(0, 9), "graph.tensors[0]", 0),
    "a text that is too long": (
        lambda b, _: b.strings.__setitem__(0, "a" * 31), "graph.strings[0]", WEIGHED),
    "a value without a kind": (lambda b, _: b.values[0].Clear(), "graph.values[0]", 0),
    "a value of the output": (
        lambda b, _: b.graphs[0].values.__setitem__(5, 1), "graph.graphs[0].values", 5),
    "a keyword as a name": (
        _rename(WEIGHED, "class"), "graph.presentation.stems", WEIGHED),
    "a name that is code": (
        _rename(WEIGHED, "a;b"), "graph.presentation.stems", WEIGHED),
    "two nodes of one name": (
        _rename(WEIGHED, "speed"), "graph.presentation.stem", WEIGHED),
    "an argument's name": (
        lambda _, n: n.graphs[0].placeholder_targets.add(node=0, target="x y"),
        "graph.presentation.placeholder_targets", 0),
    # Damage that belongs to no node.
    "an unused row": (lambda b, _: b.strings.append("unused"), "graph.strings", None),
    "no graph": (lambda b, _: b.ClearField("graphs"), "graph.graphs", None),
    "a name too few": (
        lambda _, n: n.graphs[0].stem.pop(), "graph.presentation.stem", None),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_refusal_names_its_place(
    server: RunningServer, encoded: wire.EncodedGraph, kind: str
) -> None:
    edit, field, node = KINDS[kind]
    body, names = pb.GraphBody.FromString(encoded.body), pb.Presentation()
    names.CopyFrom(encoded.presentation)
    edit(body, names)
    error = client_error(server, body.SerializeToString(deterministic=True), names)
    assert isinstance(error, errors.InvalidRequestError), error
    assert error.field.startswith(field), error
    if node is None:
        assert error.node is None, error
    else:
        assert error.node in (NODES[node], wire.node_name(names.graphs[0], node)), error
        assert f"(node {node}, called" in str(error)
    assert str(error).startswith(f"INVALID_ARGUMENT: {error.field}: ")
    assert str(error).count(error.field) == 1


def test_random_damage_is_placed_too(server: RunningServer, encoded: wire.EncodedGraph) -> None:
    """Bytes changed anywhere: whatever is refused has a field, and a call or attribute its node."""
    generator, refused = random.Random(7), 0
    for _ in range(150):
        body = bytearray(encoded.body)
        for _ in range(generator.randrange(1, 3)):
            body[generator.randrange(len(body))] = generator.randrange(256)
        with connected(server.address) as stub:
            try:
                request = request_of_body(bytes(body), encoded.presentation, "shape_propagation")
                stub.Compile(request, timeout=60)
            except grpc.RpcError as caught:
                error = to_error(caught)
            else:
                continue
        refused += 1
        assert isinstance(error, errors.InvalidRequestError), error
        assert error.field, error
        if error.field.startswith(("graph.calls[", "graph.targets[", "graph.values[")):
            assert error.node in NODES, error
    assert refused > 50


def test_bytes_that_are_not_a_request_name_the_request(server: RunningServer) -> None:
    method = "/lazyfx.v1.GraphCompiler/Compile"
    for data in (b"\x0a\x05", b"\xff" * 20, b"\x0b"):
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(method)
            with pytest.raises(grpc.RpcError) as caught:
                call(data, timeout=60)
        error = to_error(caught.value)
        assert (error.code, error.field, error.node) == ("INVALID_ARGUMENT", "request", None)


@torch.library.custom_op("places::unknown", mutates_args=())
def unknown_to_servers(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


def test_a_client_s_error_has_field_and_node(server: RunningServer) -> None:
    with lazyfx.connect(server.address) as client:
        with pytest.raises(errors.InvalidRequestError) as caught:
            client.compile(symbolic_trace(lambda x: unknown_to_servers(x) + 1), [])
        assert caught.value.field == "graph.graphs[0].calls[1]"
        assert caught.value.node == "unknown_default"
        with pytest.raises(errors.InvalidRequestError) as caught:
            client.compile(symbolic_trace(lambda x: x + 1), ["shape_propagatio"])
        assert (caught.value.field, caught.value.node) == ("passes[0].name", None)


def test_a_node_of_a_pattern_has_the_name_that_its_sender_gave_it(server: RunningServer) -> None:
    """Also where the graph itself has a node of this number, or the pattern has no names."""
    pattern = wire.encode(symbolic_trace(lambda first, second: torch.sin(first)))
    replacement = wire.encode(symbolic_trace(lambda first, second: torch.cos(first)))
    graph = wire.encode(symbolic_trace(lambda speed: torch.sin(speed) + 2))
    request = request_of_body(graph.body, graph.presentation, "replace_pattern")
    rewrite = request.passes[0].rewrites.add()
    rewrite.replacement.CopyFrom(replacement.message())
    for presentation, name in ((pattern.presentation, "second"), (None, "n1")):
        rewrite.pattern.CopyFrom(pattern.message())
        if presentation is None:
            rewrite.pattern.ClearField("presentation")
        error = _refused(server, request)
        assert error.field == "passes[0].rewrites[0].pattern"
        assert error.node == name
    body = pb.GraphBody.FromString(pattern.body)
    body.targets[0].name = "os.system"
    rewrite.pattern.body = body.SerializeToString(deterministic=True)
    error = _refused(server, request)
    assert error.field == "passes[0].rewrites[0].pattern.graphs[0].calls[2]"
    assert error.node == "n2"


def _nested(inner: Callable[..., object]) -> GraphModule:
    """x -> neg -> inner: node 1 of each graph is another one."""
    root = nn.Module()
    root.inner = symbolic_trace(inner)
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(18, 1, device="meta")
    graph.output(graph.call_module("inner", (graph.call_function(torch.neg, (x,)),)))
    return GraphModule(root, graph)


def test_a_node_of_an_inner_graph_has_its_own_name(server: RunningServer) -> None:
    encoded = wire.encode(_nested(lambda depth: torch.erfinv(depth)))
    body = pb.GraphBody.FromString(encoded.body)
    next(row for row in body.targets if row.name == "torch.erfinv").name = "os.system"
    error = client_error(server, body.SerializeToString(deterministic=True), encoded.presentation)
    assert error.field == "graph.graphs[1].calls[1]"
    assert error.node == "erfinv"
    assert "(node 1 of graph 1, called 'erfinv')" in str(error)


def test_a_pass_that_fails_names_the_node_too(server: RunningServer) -> None:
    with lazyfx.connect(server.address) as client:
        for module, name in (
            (_nested(lambda depth: torch.unbind(depth)[0]), "unbind"),
            (_module(lambda x: torch.broadcast_to(x, (9, 2, 3)).expand(12, 9, 2, 3).unbind()[0]),
             "unbind"),
        ):  # fmt: skip
            with pytest.raises(errors.OverloadedError) as caught:
                client.compile(module, ["dead_code_elimination", "shape_propagation"])
            error = caught.value
            assert (error.field, error.node) == ("passes[1]", name), error
            assert str(error).count(name) == 2  # the operator, and the node
            assert str(error).count("passes[1]") == 1


def _refused(server: RunningServer, request: compiler_pb2.CompileRequest) -> errors.ServiceError:
    with connected(server.address) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Compile(request, timeout=60)
    return to_error(caught.value)
