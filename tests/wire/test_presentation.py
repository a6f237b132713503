"""Names: canonical ones on the server, the caller's own when the graph comes back."""

from __future__ import annotations

import captures
import pytest
import torch
from checks import decode_bound
from graphs import LazyModule, call
from torch import Tensor, nn

from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2 as pb


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, images: Tensor) -> Tensor:
        return self.inner(images) + self.inner[0].weight


def compiled(module: torch.fx.GraphModule, **changes: object) -> tuple[object, pb.CompiledGraph]:
    """What a server makes of a graph when its only pass adds a relu behind the first call."""
    encoded = wire.encode(module)
    decoded = wire.decode(encoded.body, module_class=LazyModule)
    output = decoded.graph.output_node()
    source = output.args[0]
    with decoded.graph.inserting_before(output):
        relu = decoded.graph.call_function(torch.relu, (source,))
    output.args = (relu,)
    again = wire.encode(decoded)
    return encoded, pb.CompiledGraph(
        graph=again.message(), provenance=wire.provenance(encoded.body, again)
    )


def test_a_compiled_graph_comes_back_under_the_names_of_its_caller() -> None:
    (capture,) = captures.symbolic(Small(), {"images": torch.ones(4, 4)})
    encoded, graph = compiled(capture.module)
    words = wire.restore_names(graph, encoded.presentation)
    decoded = wire.decode(graph.graph.body, words)
    own = [node.name for node in capture.module.graph.nodes]
    assert [node.name for node in decoded.graph.nodes] == [*own[:-1], "relu", own[-1]]
    assert list(words.graphs[0].attribute_paths) == list(
        encoded.presentation.graphs[0].attribute_paths
    )
    assert "def forward(self, images)" in decoded.code
    (row,) = graph.provenance
    assert row.source_graph == 1
    assert list(row.nodes) == [*range(1, len(own)), 0, len(own)]
    assert list(row.attributes) == list(range(1, 1 + len(encoded.attributes[0])))


def test_new_names_give_way_to_the_callers() -> None:
    module = call("x", 1)
    list(module.graph.nodes)[1].name = "relu"
    encoded, graph = compiled(module)
    decoded = wire.decode(graph.graph.body, wire.restore_names(graph, encoded.presentation))
    names = [node.name for node in decoded.graph.nodes]
    assert names[:2] == ["x", "relu"]
    assert len(set(names)) == len(names)


def test_without_a_caller_the_names_stay() -> None:
    _, graph = compiled(call("x", 1))
    words = wire.restore_names(graph, None)
    assert words == graph.graph.presentation
    names = [node.name for node in wire.decode(graph.graph.body, words).graph.nodes]
    assert names[:2] == ["n0", "n1"]


def test_devices_come_back() -> None:
    encoded, graph = compiled(call("x", torch.device("cuda", 5), torch.device("cpu")))
    words = wire.restore_names(graph, encoded.presentation)
    decoded = wire.decode(graph.graph.body, words, module_class=LazyModule)
    assert torch.device("cuda", 5) in list(decoded.graph.nodes)[1].args


def test_nested_graphs_keep_their_names() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x.sin(), (x,))

    (capture,) = captures.dynamo(Branches(), {"x": torch.ones(3)})
    encoded, graph = compiled(capture.module)
    assert [row.source_graph for row in graph.provenance] == [1, 2, 3]
    words = wire.restore_names(graph, encoded.presentation)
    assert words.graphs[1:] == encoded.presentation.graphs[1:]


def test_names_with_numbers_come_back() -> None:
    module = call("x", 1)
    odd = ["add", "add_0", "add_00", "add_1_2", "_1", "a_99999999999", "x_"]
    for name in odd:
        with module.graph.inserting_before(module.graph.output_node()):
            module.graph.call_function(torch.relu, (1,)).name = name
    decoded = decode_bound(wire.encode(module), module_class=LazyModule)
    assert [node.name for node in decoded.graph.nodes][2:-1] == odd


def test_argument_names_and_defaults_come_back() -> None:
    def function(x: Tensor, scale: float = 2.0, *rest: Tensor, **options: Tensor) -> Tensor:
        return x * scale

    module = torch.fx.symbolic_trace(function)
    for node in module.graph.nodes:
        if node.op == "placeholder":
            node.name = f"renamed_{node.name}"
    decoded = decode_bound(wire.encode(module))
    targets = [n.target for n in decoded.graph.nodes if n.op == "placeholder"]
    assert targets == ["x", "scale", "*rest", "**options"]
    assert "scale = 2.0" in decoded.code
    assert decoded(torch.ones(1)).item() == pytest.approx(2.0)


def test_the_signature_of_an_exported_program_travels() -> None:
    (capture,) = captures.exported(Small(), {"images": torch.ones(4, 4)})
    signature = wire.encode(capture.module).presentation.signature
    assert list(signature.argument_names) == ["images"]
    assert signature.positional_count == 0
