"""An unchanged graph is not encoded again; a changed one never uses its old digest."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from harness import DCE
from torch import nn
from torch.fx import GraphModule, symbolic_trace

import lazyfx
from lazyfx.capture import remembering
from lazyfx.shared import wire


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))
        self.table = torch.arange(3.0)

    def forward(self, x):
        y = torch.add(self.linear(x) * self.scale, self.shift, alpha=2)
        return torch.cat([y, y + self.table], dim=0)


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


@pytest.fixture
def graph() -> GraphModule:
    return traced()


def traced() -> GraphModule:
    """A traced model with a plain tensor attribute, whose values are part of what it computes."""
    torch.manual_seed(0)
    graph = symbolic_trace(Model())
    graph.table = graph._buffers.pop("table")
    return graph


def node(graph: GraphModule, name: str) -> torch.fx.Node:
    return next(n for n in graph.graph.nodes if n.name == name)


def _change_argument(graph: GraphModule) -> None:
    node(graph, "add_1").args = (node(graph, "add"), 3)


def _change_keyword(graph: GraphModule) -> None:
    node(graph, "add").kwargs = {"alpha": 3}


def _update_keyword(graph: GraphModule) -> None:
    node(graph, "add").update_kwarg("alpha", 5)


def _change_inner_list(graph: GraphModule) -> None:
    node(graph, "cat").args = ([node(graph, "add")],)


def _change_target(graph: GraphModule) -> None:
    node(graph, "add").target = torch.sub


def _insert(graph: GraphModule) -> None:
    last = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    with graph.graph.inserting_before(last):
        graph.graph.call_function(torch.neg, (node(graph, "cat"),))


def _insert_and_use(graph: GraphModule) -> None:
    last = next(n for n in reversed(graph.graph.nodes) if n.op == "output")
    with graph.graph.inserting_before(last):
        new = graph.graph.call_function(torch.neg, (node(graph, "cat"),))
    last.args = (new,)


def _erase(graph: GraphModule) -> None:
    add = node(graph, "add_1")
    add.replace_all_uses_with(node(graph, "add"))
    graph.graph.erase_node(add)


def _reorder(graph: GraphModule) -> None:
    node(graph, "linear").prepend(node(graph, "shift"))


def _replace_parameter(graph: GraphModule) -> None:
    graph.scale = nn.Parameter(torch.ones(1))


def _freeze(graph: GraphModule) -> None:
    graph.scale.requires_grad_(False)


def _change_dtype(graph: GraphModule) -> None:
    graph.double()


def _replace_buffer(graph: GraphModule) -> None:
    graph.shift = torch.zeros(1)


def _write_constant(graph: GraphModule) -> None:
    graph.table.add_(1)


def _replace_constant(graph: GraphModule) -> None:
    graph.table = torch.arange(3.0) * 2


def _leave_training(graph: GraphModule) -> None:
    graph.linear.train(not graph.linear.training)


def _replace_module(graph: GraphModule) -> None:
    graph.linear = nn.Linear(3, 3, bias=False)


def _set_metadata(graph: GraphModule) -> None:
    node(graph, "x").meta["val"] = torch.empty(2, 3, device="meta")


def _new_graph(graph: GraphModule) -> None:
    other = symbolic_trace(lambda x: x + 1)
    graph.graph = other.graph


CHANGES = [
    _change_argument, _change_keyword, _update_keyword, _change_inner_list, _change_target,
    _insert, _insert_and_use, _erase, _reorder, _replace_parameter, _freeze, _change_dtype,
    _replace_buffer, _write_constant, _replace_constant, _leave_training, _replace_module,
    _set_metadata, _new_graph,
]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_graph_is_requested_by_its_new_digest(client, graph, change):
    before = client.compile(graph, [DCE])
    assert before.digest == lazyfx.digest(graph)
    change(graph)
    after = client.compile(graph, [DCE])
    assert after.digest == lazyfx.digest(graph)
    assert after.digest != before.digest


@pytest.mark.parametrize(
    "change", [_change_argument, _insert_and_use, _erase, _replace_constant, _write_constant]
)
def test_a_changed_graph_computes_what_it_now_says(client, graph, change):
    x = torch.randn(2, 3)
    client.compile(graph, [DCE])(x)
    change(graph)
    graph.recompile()
    assert torch.equal(client.compile(graph, [DCE])(x), graph(x))


def test_changed_values_of_a_parameter_do_not_concern_the_server(client, graph):
    first = client.compile(graph, [DCE])
    with torch.no_grad():
        graph.scale.mul_(3)
        graph.linear.weight.add_(1)
    again = client.compile(graph, [DCE])
    assert (again.cache.status, again.key) == ("hit", first.key)
    x = torch.randn(2, 3)
    assert torch.equal(again(x), graph(x))


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_seen(graph, change):
    encoded = remembering.encode(graph)
    remembered = remembering.cached_encoding(graph)
    assert remembered is not None
    assert remembered.encoded is encoded
    assert remembered.is_unchanged()
    change(graph)
    # Another graph in its place may have nothing remembered; an old one must say that it is old.
    found = remembering.cached_encoding(graph)
    assert found is None or not found.is_unchanged()


def test_a_copy_is_another_graph(graph):
    remembering.encode(graph)
    assert remembering.cached_encoding(copy.deepcopy(graph)) is None


def test_what_is_remembered_keeps_no_graph_alive():
    graph = traced()
    remembering.encode(graph)
    gone = weakref.ref(graph)
    del graph
    gc.collect()
    assert gone() is None


def test_an_unchanged_graph_is_a_hit_again_and_again(client, graph):
    assert client.compile(graph, [DCE]).cache.status in ("miss", "hit")
    assert [client.compile(graph, [DCE]).cache.status for _ in range(5)] == ["hit"] * 5


def test_reverting_a_change_restores_the_first_digest(client, graph):
    first = client.compile(graph, [DCE])
    args = node(graph, "add_1").args
    _change_argument(graph)
    client.compile(graph, [DCE])
    node(graph, "add_1").args = args
    assert client.compile(graph, [DCE]).digest == first.digest


def _hook_inside(module: GraphModule) -> None:
    module.inner.register_forward_hook(lambda *_: None)


def _method_inside(module: GraphModule) -> None:
    module.inner.forward = torch.neg


def _source_inside(module: GraphModule) -> None:
    module.inner.graph.on_generate_code(lambda _: lambda body: body)


def _source(module: GraphModule) -> None:
    module.graph.on_generate_code(lambda _: lambda body: body)


@pytest.mark.parametrize("change", [_hook_inside, _method_inside, _source_inside, _source])
def test_what_changes_a_call_without_changing_a_node_is_seen(change):
    inner = symbolic_trace(nn.ReLU())
    graph = torch.fx.Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    module = GraphModule({"inner": inner}, graph)
    remembering.encode(module)
    remembered = remembering.cached_encoding(module)
    assert remembered.is_unchanged()
    change(module)
    assert not remembered.is_unchanged()


@pytest.mark.parametrize("found", ["example_value", wire.META_KEY, None])
def test_metadata_under_a_key_that_is_looked_at_first_is_a_change(found):
    graph = symbolic_trace(lambda x: x + 1)
    first = next(iter(graph.graph.nodes))
    if found is not None:
        first.meta[found] = torch.zeros(2) if found == "example_value" else None
    remembering.encode(graph)
    remembered = remembering.cached_encoding(graph)
    assert remembered is not None
    assert remembered.is_unchanged()
    first.meta["val"] = torch.zeros(3)
    assert not remembered.is_unchanged()
    del first.meta["val"]
    assert remembered.is_unchanged()
    last = list(graph.graph.nodes)[-2]
    last.meta["example_value"] = torch.zeros(3)
    assert not remembered.is_unchanged()
