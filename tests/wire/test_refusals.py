"""What the format cannot carry is refused by name, with a way out."""

from __future__ import annotations

import dataclasses
from collections import namedtuple
from typing import Any

import captures
import pytest
import torch
from graphs import LazyModule, call
from torch import nn
from torch._higher_order_ops.triton_kernel_wrap import triton_kernel_wrapper_functional
from torch.fx import Graph, GraphModule
from torch.nested._internal.nested_tensor import nested_view_from_values_offsets
from torch.testing._internal.two_tensor import TwoTensor

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire

Pair = namedtuple("Pair", "a b")  # noqa: PYI024 - the untyped kind is what fx meets


class Opaque:
    """Nothing that torch knows."""


def graph_with(target: Any, args: tuple[Any, ...]) -> GraphModule:
    module = call("x", 1, target=target)
    node = list(module.graph.nodes)[1]
    node.args = args
    return module


@pytest.mark.parametrize(
    ("argument", "reason", "remedy"),
    [
        (torch.Generator(), "torch._C.Generator", "generator"),
        (Pair(1, 2), "Pair", "plain tuple"),
        (Opaque(), "Opaque", "numbers, strings"),
        (torch.ones(2), "torch.Tensor", "buffer"),
        (2**64, "64 bits", "float"),
        (lambda x: x, "lambda", "torch operators"),
        ({1.5: 1}, "key of type float", "strings"),
        ("\ud800", "surrogate", ""),
    ],
)
def test_an_argument(argument: Any, reason: str, remedy: str) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(graph_with(torch.ops.aten.add.Tensor, (argument,)))
    assert caught.value.node == "add_tensor"
    assert reason in caught.value.reason
    assert remedy in caught.value.remedy


class MarkedFunction(nn.Module):
    """A function that dynamo does not look into, and that takes a type of its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return halves(Halves(x, x + 1))


@dataclasses.dataclass
class Halves:
    left: torch.Tensor
    right: torch.Tensor


torch.export.register_dataclass(Halves)


@torch._dynamo.nonstrict_trace
def halves(given: Halves) -> torch.Tensor:
    return given.left * given.right


@torch._dynamo.allow_in_graph
def kept_whole(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


class Subclass(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 2


def test_what_is_the_callers_own_is_refused_with_a_way_out() -> None:
    two = TwoTensor(torch.randn(3), torch.randn(3))
    (marked,) = captures.dynamo(MarkedFunction(), {"x": torch.randn(3)})
    (subclass,) = captures.dynamo(Subclass(), {"x": two})
    # torch 2.11 keeps such a function in a pytree structure.
    in_structure = any(node.name == "halves_spec" for node in marked.module.graph.nodes)
    triton = call(target=triton_kernel_wrapper_functional, kernel_idx=0)
    for module, words in (
        (marked.module, ("pytree",) if in_structure else ("custom_op", "--operator-modules")),
        (subclass.module, ("TwoTensor", "AOTAutograd")),
        (triton, ("triton_kernel_wrapper_functional", "within a custom operator")),
        (call("x", target=kept_whole), ("kept_whole", "--operator-modules")),
        (
            call("x", target=nested_view_from_values_offsets),
            ("build the jagged tensor outside the compiled code",),
        ),
    ):
        with pytest.raises(UnsupportedGraphError) as caught:
            wire.encode(module)
        assert caught.value.node
        assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    "target",
    [torch.load, torch.save, torch.manual_seed, torch.from_file, eval, open, print, exec, setattr],
)
def test_a_callable_that_reaches_outside(target: Any) -> None:
    with pytest.raises(UnsupportedGraphError, match="not in the table of allowed targets"):
        wire.encode(graph_with(target, ()))


@pytest.mark.parametrize("name", ["__class__", "__dict__", "data_ptr", "grad_fn", "__reduce__"])
def test_an_attribute_read(name: str) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(call("x", name, target=getattr))
    assert caught.value.node == "getattr_1"


@pytest.mark.parametrize("method", ["backward", "numpy", "__reduce_ex__", "data_ptr", "map_"])
def test_a_method(method: str) -> None:
    graph = Graph()
    graph.output(graph.call_method(method, (graph.placeholder("x"),)))
    with pytest.raises(UnsupportedGraphError, match="method"):
        wire.encode(LazyModule(nn.Module(), graph))


def module_calling(leaf: nn.Module) -> GraphModule:
    root = nn.Module()
    root.leaf = leaf
    graph = Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    return LazyModule(root, graph)


def test_a_module_class_of_the_caller() -> None:
    class Mine(nn.Linear):
        pass

    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(module_calling(Mine(2, 2)))
    assert "Mine" in caught.value.reason
    assert "trace through" in caught.value.remedy


def test_a_leaf_module_with_hooks() -> None:
    linear = nn.Linear(2, 2)
    linear.register_forward_hook(lambda *_: None)
    with pytest.raises(UnsupportedGraphError, match="hooks"):
        wire.encode(module_calling(linear))


def test_a_leaf_module_that_was_changed() -> None:
    convolution = nn.Conv2d(2, 2, 3)
    convolution.transposed = True
    with pytest.raises(UnsupportedGraphError, match="changed after construction"):
        wire.encode(module_calling(convolution))


def test_the_guards_of_an_exported_program() -> None:
    program = torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),))
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(program.module())
    assert "check_guards=False" in caught.value.remedy


def test_an_attribute_that_is_not_there() -> None:
    graph = Graph()
    node = graph.create_node("get_attr", "nowhere")
    graph.output(node)
    module = LazyModule(nn.Module(), Graph())
    module.graph = graph
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(module)
    assert caught.value.node == "nowhere"


def test_an_operand_that_comes_later() -> None:
    module = call("x", 1)
    x, add, _ = module.graph.nodes
    x.append(module.graph.create_node("call_function", torch.relu, (add,)))
    with pytest.raises(UnsupportedGraphError, match="before it in the graph") as caught:
        wire.encode(module)
    assert caught.value.node == "relu"


def test_nesting_without_end() -> None:
    argument: Any = 1
    for _ in range(100):
        argument = [argument]
    with pytest.raises(UnsupportedGraphError, match="nested too deeply"):
        wire.encode(graph_with(torch.ops.aten.add.Tensor, (argument,)))


def test_an_operator_that_opens_files() -> None:
    with pytest.raises(UnsupportedGraphError):
        wire.encode(graph_with(torch.ops.aten.from_file.default, ("/etc/passwd",)))
