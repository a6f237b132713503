"""Pairs that compute different things and look alike: two digests, or a refusal.

Whatever two graphs can differ in that changes what comes out belongs in one of these
lists. A digest that two of them shared would hand one caller the other's module.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.utils.prune
from graphs import LazyModule, call
from test_tensors import reading
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire

Make = Callable[[], GraphModule]


class Subclass(torch.Tensor):
    """Computes what it likes."""


class Number(int):
    """Not an int."""


class Text(str):
    """Not a str."""


class Mode(enum.IntEnum):
    """Not an int either."""

    FIRST = 1


class Pair(NamedTuple):
    """Not a tuple."""

    first: int
    second: int


def returning(*names: str) -> GraphModule:
    """A graph that returns a dictionary with its keys in this order."""
    graph = Graph()
    x = graph.placeholder("x")
    parts = {"a": x, "b": graph.call_function(torch.relu, (x,))}
    graph.output({name: parts[name] for name in names})
    return LazyModule(nn.Module(), graph)


def holding(value: object) -> GraphModule:
    """A graph that makes a list of an attribute that is no tensor."""
    root = nn.Module()
    root.value = value
    graph = Graph()
    graph.output(graph.call_function(list, (graph.get_attr("value"),)))
    return LazyModule(root, graph)


def calling(part: nn.Module, change: Callable[[Any], object] = lambda _: None) -> GraphModule:
    """A graph that calls a module, which was changed after construction."""
    root = nn.Module()
    root.part = part
    change(part)
    graph = Graph()
    graph.output(graph.call_module("part", (graph.placeholder("x"),)))
    return LazyModule(root, graph)


def nested(change: Callable[[GraphModule], object]) -> GraphModule:
    child = call("x", 1)
    child.real_recompile()
    return calling(child, change)


def generating(change: Callable[[Graph], object]) -> GraphModule:
    module = call("x", 1)
    change(module.graph)
    return module


def valued(value: object) -> GraphModule:
    module = call("x", 1)
    next(iter(module.graph.nodes)).meta["val"] = value
    return module


def conv(**options: Any) -> nn.Module:
    return nn.Conv2d(2, 2, 3, **{"padding": 1, **options})


def set_to(name: str, value: object) -> Callable[[Any], object]:
    return lambda part: setattr(part, name, value)


def loose_weight(part: nn.Module) -> None:
    del part.weight
    part.weight = torch.ones(2, 2)  # type: ignore[assignment]


class OwnCodegen(torch.fx.graph.CodeGen):
    def process_outputs(self, outputs: Any) -> Any:
        return -outputs


def transform(graph: Graph) -> None:
    graph.on_generate_code(lambda _: lambda body: [*body[:-1], "return 7\n"])


ones = torch.ones(2)

DIFFERENT: dict[str, tuple[Make, Make]] = {
    "a dictionary returned": (lambda: returning("a", "b"), lambda: returning("b", "a")),
    "a dictionary listed": (
        lambda: call({"a": 1, "b": 2}, target=list),
        lambda: call({"b": 2, "a": 1}, target=list),
    ),
    "a dictionary held": (lambda: holding({"a": 1, "b": 2}), lambda: holding({"b": 2, "a": 1})),
    "views of one memory": (
        lambda: reading(a=ones[:1], b=ones[1:]),
        lambda: reading(a=ones[:1].clone(), b=ones[1:]),
    ),
    "an expanded constant": (
        lambda: reading(a=torch.ones(2, 2)),
        lambda: reading(a=torch.ones(1, 2).expand(2, 2)),
    ),
    "the payload of a NaN in a constant": (
        lambda: reading(a=torch.tensor([0x7FC00000], dtype=torch.int32).view(torch.float32)),
        lambda: reading(a=torch.tensor([0x7FC00001], dtype=torch.int32).view(torch.float32)),
    ),
    "the sign of zero in a constant": (
        lambda: reading(a=torch.tensor([0.0])),
        lambda: reading(a=torch.tensor([-0.0])),
    ),
    "a conjugate view": (
        lambda: reading(a=torch.tensor([1 + 1j])),
        lambda: reading(a=torch.tensor([1 - 1j]).conj()),
    ),
    "statistics that are not kept": (
        lambda: calling(nn.BatchNorm2d(2)),
        lambda: calling(nn.BatchNorm2d(2), set_to("track_running_stats", False)),
    ),
    "a momentum of None": (
        lambda: calling(nn.BatchNorm2d(2)),
        lambda: calling(nn.BatchNorm2d(2), set_to("momentum", None)),
    ),
    "an option of a part": (
        lambda: calling(nn.MultiheadAttention(4, 2)),
        lambda: calling(nn.MultiheadAttention(4, 2), set_to("dropout", 0.5)),
    ),
    "0 and 0.0 as an option": (
        lambda: calling(nn.Dropout(0)),
        lambda: calling(nn.Dropout(0.0)),
    ),
    "a parameter and what it holds": (
        lambda: reading(a=nn.Parameter(torch.ones(2), requires_grad=False)),
        lambda: reading(a=torch.ones(2)),
    ),
}

REFUSED: dict[str, Make] = {
    "a dictionary of keywords": lambda: call(target=dict, b=1, a=2),
    "a constant of a subclass behind a like one": lambda: reading(
        a=torch.ones(2), b=torch.ones(2).as_subclass(Subclass)
    ),
    "a parameter of a subclass": lambda: reading(
        a=nn.Parameter(torch.ones(2).as_subclass(Subclass))
    ),
    "a value of a subclass": lambda: valued(torch.ones(2).as_subclass(Subclass)),
    "a nested tensor": lambda: reading(a=torch.nested.nested_tensor([ones, ones])),
    "a jagged tensor": lambda: reading(
        a=torch.nested.nested_tensor([ones, ones], layout=torch.jagged)
    ),
    "a size of a jagged tensor": lambda: call(
        "x", torch.nested.nested_tensor([ones, ones], layout=torch.jagged).shape[1]
    ),
    "a hybrid sparse tensor": lambda: reading(a=nn.Parameter(torch.eye(2).to_sparse(1))),
    "a blocked sparse tensor": lambda: reading(a=nn.Parameter(torch.eye(4).to_sparse_bsr((2, 2)))),
    "a quantized tensor": lambda: reading(a=torch.quantize_per_tensor(ones, 1.0, 0, torch.qint8)),
    "a tensor of oneDNN": lambda: reading(a=torch.ones(2).to_mkldnn()),
    "a layout of oneDNN": lambda: call("x", layout=torch._mkldnn),
    "a quantized dtype": lambda: call("x", torch.qint8),
    "a quantization scheme": lambda: call("x", torch.per_tensor_affine),
    "an enum": lambda: call("x", Mode.FIRST),
    "a subclass of int": lambda: call("x", Number(1)),
    "a subclass of str": lambda: call("x", Text("a")),
    "a number of numpy": lambda: call("x", np.float64(1.0)),
    "a named tuple": lambda: call("x", Pair(1, 2)),
    "a range": lambda: call("x", range(3)),
    "bytes": lambda: call("x", b"ab"),
    "a set held": lambda: holding({1, 2}),
    "an integer of 65 bits": lambda: call("x", 2**64),
    "a generator": lambda: call("x", torch.Generator()),
    "a literal tensor": lambda: call("x", torch.ones(1)),
    "a lone surrogate": lambda: call("x", "\ud800"),
    "a code generator that changes the source": lambda: generating(transform),
    "a code generator of one's own": lambda: generating(lambda g: g.set_codegen(OwnCodegen())),
    "a boxed calling convention": lambda: generating(
        lambda g: g.set_codegen(torch.fx.graph._BoxedCodeGen())
    ),
    "a nested graph with a hook": lambda: nested(
        lambda m: m.register_forward_hook(lambda module, inputs, output: output + 1)
    ),
    "a nested graph with a hook before it": lambda: nested(
        lambda m: m.register_forward_pre_hook(lambda module, inputs: (inputs[0] + 1,))
    ),
    "a nested graph with a forward of its own": lambda: nested(set_to("forward", lambda x: x + 1)),
    "a nested graph with a changed source": lambda: nested(lambda m: transform(m.graph)),
    "a module with a hook": lambda: calling(
        nn.ReLU(), lambda m: m.register_forward_hook(lambda module, inputs, output: output + 1)
    ),
    "a module with a method of its own": lambda: calling(
        conv(), set_to("_conv_forward", lambda *_: None)
    ),
    "a module changed in a private setting": lambda: calling(
        conv(padding=2, padding_mode="circular"), set_to("padding", (1, 1))
    ),
    "a module with a setting of its own": lambda: calling(nn.Linear(2, 2), set_to("own", 1)),
    "a module whose weight is no parameter": lambda: calling(nn.Linear(2, 2), loose_weight),
    "a module whose weight is computed": lambda: calling(
        nn.utils.parametrizations.orthogonal(nn.Linear(2, 2))
    ),
    "a pruned module": lambda: calling(
        nn.utils.prune.l1_unstructured(nn.Linear(2, 2), "weight", amount=1)
    ),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_two_computations_have_two_digests(name: str) -> None:
    first, second = (wire.encode(make()) for make in DIFFERENT[name])
    assert first.digest != second.digest
    for encoded in (first, second):
        again = wire.encode(wire.decode(encoded.body, module_class=LazyModule))
        assert again.body == encoded.body


@pytest.mark.parametrize("name", REFUSED)
def test_what_the_format_cannot_tell_apart_is_refused(name: str) -> None:
    module = REFUSED[name]()
    with pytest.raises(UnsupportedGraphError):
        wire.encode(module)


def test_values_that_differ_in_layout_only() -> None:
    with FakeTensorMode():
        square = torch.empty(2, 3, 4, 4)
        values = [
            *(square, square.contiguous(memory_format=torch.channels_last), square.double()),
            *(torch._neg_view(square), square.clone().requires_grad_(), nn.Parameter(square)),
            *(square[:, :, :, 1:], torch.empty(2, 3, 4, 4, device="meta"), square.to(torch.int8)),
            *(torch.empty(96), square[None], square.to_sparse(), [square], (square,)),
        ]
        whole = torch.empty(2, dtype=torch.complex64)
        values += [whole, whole.conj(), torch.empty(3, 4), torch.empty(3, 4).to_sparse_csr()]
    digests = [wire.digest(valued(value)) for value in values]
    assert len(set(digests)) == len(digests)


def test_the_order_of_a_dictionary_that_torch_looks_into_does_not_count() -> None:
    for target in (torch.cat, torch.ops.aten.add.Tensor, torch.ops.aten.add):
        first = call("x", {"a": 1, "b": {"d": "x", "c": 2}}, target=target)
        second = call("x", {"b": {"c": 2, "d": "x"}, "a": 1}, target=target)
        assert wire.digest(first) == wire.digest(second)


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a")])
def test_a_returned_dictionary_keeps_its_order(names: tuple[str, ...]) -> None:
    encoded = wire.encode(returning(*names))
    decoded = wire.decode(encoded.body)
    assert tuple(decoded(torch.ones(2))) == names
