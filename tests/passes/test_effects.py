"""Which nodes do something besides computing, and whose storage they share."""

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.fx import Graph, GraphModule, Node

from lazyfx_server.passes.analysis.effects import Effects, effects_of
from lazyfx_server.passes.analysis.storage import StorageMap

aten = torch.ops.aten


def node_of(
    op: str, target: Any, *args: Any, root: nn.Module | None = None, **kwargs: Any
) -> tuple[Node, list[Node]]:
    """A node of a small graph; the strings a, b, c, d and e stand for inputs."""
    graph = Graph()
    inputs = {name: graph.placeholder(name) for name in "abcde"}

    def given(value: Any) -> Any:
        return inputs.get(value, value) if isinstance(value, str) else value

    node = graph.create_node(
        op, target, tuple(map(given, args)), {k: given(v) for k, v in kwargs.items()}
    )
    graph.output(node)
    GraphModule(root or nn.Module(), graph)
    return node, list(inputs.values())


def call(target: Any, *args: Any, **kwargs: Any) -> Effects:
    return effects_of(node_of("call_function", target, *args, **kwargs)[0])


def method(name: str, *args: Any, **kwargs: Any) -> Effects:
    return effects_of(node_of("call_method", name, *args, **kwargs)[0])


def module(called: nn.Module, *args: Any, training: bool = True) -> Effects:
    root = nn.Module()
    root.called = called.train(training)
    return effects_of(node_of("call_module", "called", *args, root=root)[0])


def unknown_function(x: torch.Tensor) -> torch.Tensor:
    return x


PURE: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (torch.add, ("a", "b"), {}),
    (operator.add, ("a", 1), {}),
    (operator.getitem, ("a", slice(None)), {}),
    (getattr, ("a", "shape"), {}),
    (F.relu, ("a",), {}),
    (F.relu, ("a", False), {}),
    (F.gelu, ("a",), {}),
    (F.linear, ("a", "b"), {}),
    (F.layer_norm, ("a", (4,)), {}),
    (F.embedding, ("a", "b"), {}),
    (F.batch_norm, ("a", "b", "c"), {}),
    (F.batch_norm, ("a", "b", "c"), {"training": False}),
    (F.max_pool2d, ("a", 2), {}),
    (F.dropout, ("a", 0.5, False), {}),
    (F.dropout, ("a",), {"p": 0.0}),
    (F.scaled_dot_product_attention, ("a", "b", "c"), {}),
    (F.scaled_dot_product_attention, ("a", "b", "c"), {"dropout_p": 0.0}),
    (torch.dropout, ("a", 0.5, False), {}),
    (torch.arange, (4,), {}),
    (torch.where, ("a", "b", "c"), {}),
    (torch.sym_max, ("a", 1), {}),
    (aten.add.Tensor, ("a", "b"), {}),
    (aten.relu.default, ("a",), {}),
    (aten.view.default, ("a", [4]), {}),
    (aten.dropout.default, ("a", 0.1, False), {}),
    (aten.native_dropout.default, ("a", 0.1, False), {}),
    (aten.batch_norm.default, ("a", "b", "c", "d", "e", False, 0.1, 1e-5, True), {}),
    (aten._native_batch_norm_legit_no_training.default, ("a", "b", "c", "d", "e", 0.1, 1e-5), {}),
    (aten.sum.dim_IntList, ("a", [0]), {}),
]

KEPT: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (operator.iadd, ("a", "b"), {}),
    (operator.setitem, ("a", 0, "b"), {}),
    (torch.relu_, ("a",), {}),
    (F.relu, ("a",), {"inplace": True}),
    (F.relu, ("a", True), {}),
    (F.leaky_relu, ("a", 0.1, True), {}),
    (F.hardtanh, ("a", -1.0, 1.0, True), {}),
    (F.dropout, ("a", 0.5, False, True), {}),
    (torch.add, ("a", "b"), {"out": "c"}),
    (F.batch_norm, ("a", "b", "c"), {"training": True}),
    (F.batch_norm, ("a", "b", "c", None, None, True), {}),
    (F.instance_norm, ("a", "b", "c"), {}),
    (F.embedding, ("a", "b", None, 1.0), {}),
    (F.embedding_bag, ("a", "b", None, 1.0), {}),
    (aten.add_, (), {"self": "a", "other": "b"}),
    (torch.rand, (4,), {}),
    (torch.bernoulli, ("a",), {}),
    (F.dropout, ("a",), {}),
    (F.dropout, ("a", 0.5), {}),
    (F.rrelu, ("a",), {"training": True}),
    (F.gumbel_softmax, ("a",), {}),
    (F.scaled_dot_product_attention, ("a", "b", "c", None, 0.1), {}),
    (torch._assert, ("a", "no"), {}),
    (torch._C._set_grad_enabled, (False,), {}),
    (torch.amp.autocast_mode._enter_autocast, ("cpu",), {}),
    (torch._functorch.predispatch._vmap_increment_nesting, (2, "error"), {}),
    (torch.manual_seed, (0,), {}),
    (torch.save, ("a", "file"), {}),
    (print, ("a",), {}),
    (unknown_function, ("a",), {}),
    (aten.add_.Tensor, ("a", "b"), {}),
    (aten.add.out, ("a", "b"), {"out": "c"}),
    (aten.copy_.default, ("a", "b"), {}),
    (aten.index_put_.default, ("a", ["b"], "c"), {}),
    (aten.rand.default, ([4],), {}),
    (aten.dropout.default, ("a", 0.1, True), {}),
    (aten.native_dropout.default, ("a", 0.1, True), {}),
    (aten.batch_norm.default, ("a", "b", "c", "d", "e", True, 0.1, 1e-5, True), {}),
    (aten._native_batch_norm_legit.default, ("a", "b", "c", "d", "e", True, 0.1, 1e-5), {}),
    (aten.native_batch_norm.default, ("a", "b", "c", "d", "e", True, 0.1, 1e-5), {}),
    (aten._assert_async.msg, ("a", "no"), {}),
    (aten.sym_constrain_range_for_size.default, ("a",), {}),
    (torch.ops._c10d_functional.all_reduce.default, ("a", "sum", "0"), {}),
    (torch.ops._c10d_functional.wait_tensor.default, ("a",), {}),
]


def named(value: object) -> str:
    """The same in every process: functions show their addresses."""
    return getattr(value, "__name__", None) or str(value)


@pytest.mark.parametrize(("target", "args", "kwargs"), PURE, ids=named)
def test_pure(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    assert call(target, *args, **kwargs).pure


@pytest.mark.parametrize(("target", "args", "kwargs"), KEPT, ids=named)
def test_kept(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    effects = call(target, *args, **kwargs)
    assert effects.keep
    assert not effects.pure
    assert not effects.mergeable


@pytest.mark.parametrize(
    "name", ["add_", "__iadd__", "__setitem__", "copy_", "requires_grad_", "zero_", "bernoulli_"]
)
def test_in_place_methods_write_their_tensor(name: str) -> None:
    node, inputs = node_of("call_method", name, "a", "b")
    effects = effects_of(node)
    assert effects.keep
    assert inputs[0] in effects.writes
    assert inputs[0] in effects.aliases


@pytest.mark.parametrize(
    ("target", "args"),
    [
        (aten.split.Tensor, ("a", 2)),
        (aten.split_with_sizes.default, ("a", [1, 1])),
        (aten.chunk.default, ("a", 2)),
        (aten.tensor_split.sections, ("a", 2)),
        (aten.unbind.int, ("a",)),
        (aten.hsplit.int, ("a", 2)),
        (aten.unsafe_split.Tensor, ("a", 2)),
        (aten._unsafe_view.default, ("a", [4])),
        (aten.unsafe_chunk.default, ("a", 2)),
        (torch.split, ("a", 2)),
        (torch.unbind, ("a",)),
    ],
    ids=named,
)
def test_lists_of_views_share_the_memory_of_their_operand(
    target: Any, args: tuple[Any, ...]
) -> None:
    node, inputs = node_of("call_function", target, *args)
    assert inputs[0] in effects_of(node).aliases


@pytest.mark.parametrize("name", ["add", "__add__", "size", "view", "float", "contiguous", "item"])
def test_pure_methods(name: str) -> None:
    assert method(name, "a").pure


@pytest.mark.parametrize("name", ["backward", "register_hook", "record_stream", "append", "nope"])
def test_methods_that_are_not_known_to_be_pure(name: str) -> None:
    assert method(name, "a", "b").keep


@pytest.mark.parametrize(
    ("target", "args", "kwargs", "written"),
    [
        (operator.imul, ("a", "b"), {}, ["a"]),
        (torch.add, ("a", "b"), {"out": "c"}, ["c"]),
        (F.batch_norm, ("a", "b", "c"), {"training": True}, ["b", "c"]),
        (
            aten.batch_norm.default,
            ("a", "b", "c", "d", "e", True, 0.1, 1e-5, True),
            {},
            ["d", "e"],
        ),
        (aten.add_.Tensor, ("a", "b"), {}, ["a"]),
        (aten.add.out, ("a", "b"), {"out": "c"}, ["c"]),
    ],
)
def test_what_is_written(
    target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], written: list[str]
) -> None:
    assert [node.name for node in call(target, *args, **kwargs).writes] == written


@pytest.mark.parametrize(
    ("target", "args", "shared"),
    [
        (aten.view.default, ("a", [4]), True),
        (aten.reshape.default, ("a", [4]), True),
        (aten.clone.default, ("a",), False),
        (aten.add.Tensor, ("a", "b"), False),
        (aten.dropout.default, ("a", 0.1, False), True),
        (aten.type_as.default, ("a", "b"), True),
        (torch.transpose, ("a", 0, 1), True),
        (F.dropout, ("a", 0.1, False), True),
        (F.relu, ("a",), False),
        (operator.getitem, ("a", 0), True),
        (operator.add, ("a", "b"), False),
        (operator.add, ("a", [1]), True),
        (getattr, ("a", "T"), True),
    ],
)
def test_the_storage_that_a_result_may_share(
    target: Any, args: tuple[Any, ...], shared: bool
) -> None:
    assert bool(call(target, *args).aliases) is shared


@pytest.mark.parametrize(
    ("called", "training", "pure"),
    [
        (nn.Linear(4, 4), True, True),
        (nn.ReLU(), True, True),
        (nn.ReLU(inplace=True), True, False),
        (nn.Dropout(), True, False),
        (nn.Dropout(), False, True),
        (nn.Dropout(0.0), True, True),
        (nn.BatchNorm2d(4), True, False),
        (nn.BatchNorm2d(4), False, True),
        (nn.BatchNorm2d(4, track_running_stats=False), True, True),
        (nn.InstanceNorm2d(4, track_running_stats=True), True, False),
        (nn.Embedding(4, 4, max_norm=1.0), False, False),
        (nn.LSTM(4, 4, num_layers=2, dropout=0.5), True, False),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), True, False),
        (nn.Sequential(nn.Linear(4, 4), nn.Dropout()), False, True),
        (nn.TransformerEncoderLayer(4, 1), True, False),
        (nn.Module(), True, False),
    ],
    ids=str,
)
def test_modules(called: nn.Module, training: bool, pure: bool) -> None:
    assert module(called, "a", training=training).pure is pure


def test_a_module_with_a_hook_does_what_its_hook_does() -> None:
    called = nn.Linear(4, 4)
    called.register_forward_hook(lambda *_: None)
    assert module(called, "a").keep


def test_a_nested_graph_is_as_pure_as_its_nodes() -> None:
    pure = torch.fx.symbolic_trace(lambda x: torch.relu(x))
    writing = torch.fx.symbolic_trace(lambda x: x.add_(1))
    assert module(pure, "a").pure
    assert module(writing, "a").keep


def test_a_higher_order_operator_is_as_pure_as_its_bodies() -> None:
    for function, kept in ((lambda x: x + 1, False), (lambda x: x.add_(1), True)):
        root = nn.Module()
        root.body = torch.fx.symbolic_trace(function)
        graph = Graph()
        x = graph.placeholder("x")
        body = graph.get_attr("body")
        node = graph.call_function(torch.ops.higher_order.wrap, (body, x))
        graph.output(node)
        GraphModule(root, graph)
        assert effects_of(node).keep is kept


def test_inputs_may_be_one_tensor() -> None:
    graph = Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    view = graph.call_function(aten.view.default, (a, [4]))
    fresh = graph.call_function(aten.add.Tensor, (a, 1))
    graph.call_function(aten.add_.Tensor, (b, 1))
    output = graph.output((view,))
    GraphModule(nn.Module(), graph)
    storage = StorageMap(graph)
    assert storage.written_after(view)
    assert not storage.written(fresh)
    assert storage.escapes(view)
    assert storage.escapes(a)
    assert not storage.escapes(fresh)
    assert storage.writes_before(a, storage.position[output]) == 1
    assert storage.writes_before(a, storage.position[fresh]) == 0
