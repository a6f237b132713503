"""Values of decoded nodes: nothing is built until it is read, and then all of it is right."""

from __future__ import annotations

import copy

import captures
import models
import pytest
import torch
from graphs import LazyModule, call
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.shared import wire

ROW_DTYPES = [torch.float32, torch.bfloat16, torch.float8_e4m3fn, torch.complex64, torch.bool]


def decoded_with_originals(module: GraphModule) -> list[tuple[torch.fx.Node, object]]:
    decoded = wire.decode(wire.encode(module).body, module_class=LazyModule)
    key = "val" if any("val" in n.meta for n in module.graph.nodes) else "example_value"
    originals = [node.meta.get(key) for node in module.graph.nodes]
    return list(zip(decoded.graph.nodes, originals, strict=True))


def assert_same_tensor(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert isinstance(ours, FakeTensor)
    for attribute in ("shape", "dtype", "device", "layout", "requires_grad"):
        assert getattr(ours, attribute) == getattr(theirs, attribute)
    assert ours.stride() == theirs.stride()
    assert ours.storage_offset() == theirs.storage_offset()
    assert ours.is_conj() == theirs.is_conj()


def test_static_values_are_those_of_the_capture() -> None:
    (capture,) = captures.exported(*models.gpt2(layers=1))
    mode = FakeTensorMode()
    compared = 0
    for node, original in decoded_with_originals(capture.module):
        value = wire.materialize(node, mode)
        if isinstance(original, torch.Tensor):
            assert_same_tensor(value, original)
            compared += 1
    assert compared > 50


def test_symbolic_values_have_the_ranges_and_examples_of_the_capture() -> None:
    (capture,) = captures.exported(*models.gpt2(layers=1), dynamic=True)
    env = ShapeEnv()
    mode = FakeTensorMode(shape_env=env)
    symbolic = 0
    for node, original in decoded_with_originals(capture.module):
        value = wire.materialize(node, mode)
        if not isinstance(original, torch.Tensor):
            continue
        assert value.ndim == original.ndim
        for ours, theirs in zip(value.shape, original.shape, strict=True):
            assert isinstance(ours, torch.SymInt) == isinstance(theirs, torch.SymInt)
            if isinstance(ours, torch.SymInt):
                assert ours.node.hint == theirs.node.hint
                symbolic += 1
    assert symbolic > 20
    (source,) = {
        s.node.shape_env
        for n in capture.module.graph.nodes
        for s in getattr(n.meta.get("val"), "shape", ())
        if isinstance(s, torch.SymInt)
    }
    bounds = {(str(r.lower), str(r.upper)) for r in env.var_to_range.values()}
    assert bounds <= {(str(r.lower), str(r.upper)) for r in source.var_to_range.values()}


def test_symbolic_values_without_symbols_are_the_examples() -> None:
    (capture,) = captures.exported(*models.gpt2(layers=1), dynamic=True)
    mode = FakeTensorMode()
    shapes = [
        tuple(wire.materialize(node, mode).shape)
        for node, original in decoded_with_originals(capture.module)
        if isinstance(original, torch.Tensor)
    ]
    assert all(type(size) is int for shape in shapes for size in shape)
    assert (2, 8) in shapes


@pytest.mark.parametrize("dtype", ROW_DTYPES)
def test_every_kind_of_tensor_is_described(dtype: torch.dtype) -> None:
    with FakeTensorMode() as mode:
        base = torch.empty(4, 5, 6, dtype=dtype)
        tensors = [base, base.transpose(0, 2), base[1:, ::2], base[0, 0, 0], base[:0], base[3]]
        if dtype.is_complex:
            tensors += [base.conj(), base.conj().imag]
        if dtype.is_floating_point and dtype.itemsize > 1:
            tensors.append(torch.empty(3, dtype=dtype, requires_grad=True))
    for tensor in tensors:
        module = call("x", 1)
        first = next(iter(module.graph.nodes))
        first.meta["val"] = (tensor, [None, 3, True, 2.5])
        ((node, _), *_) = decoded_with_originals(module)
        value, rest = wire.materialize(node, mode)
        assert_same_tensor(value, tensor)
        assert rest == [None, 3, True, 2.5]


def test_values_of_a_device_that_is_not_here_are_built() -> None:
    module = call("x", 1)
    with FakeTensorMode() as mode:
        value = FakeTensor(mode, torch.empty(2, device="meta"), torch.device("cuda", 3))
    next(iter(module.graph.nodes)).meta["val"] = value
    encoded = wire.encode(module)
    own = wire.decode(encoded.body, encoded.presentation, module_class=LazyModule)
    node = next(iter(own.graph.nodes))
    assert wire.materialize(node, FakeTensorMode()).device == torch.device("cuda", 3)


def test_a_value_that_a_pass_computed_wins() -> None:
    (capture,) = captures.exported(nn.Linear(4, 4), {"input": torch.ones(2, 4)})
    encoded = wire.encode(capture.module)
    decoded = wire.decode(encoded.body, module_class=LazyModule)
    mode = FakeTensorMode()
    for node in decoded.graph.nodes:
        if wire.describe(node) is not None:
            node.meta["val"] = wire.materialize(node, mode)
    assert wire.encode(decoded).body == encoded.body
    first = next(iter(decoded.graph.nodes))
    with mode:
        first.meta["val"] = torch.empty(7, 7)
    assert wire.encode(decoded).body != encoded.body
    assert wire.materialize(first, mode) is first.meta["val"]


def test_symbolic_values_that_were_built_encode_to_the_same_bytes() -> None:
    (capture,) = captures.exported(*models.gpt2(layers=1), dynamic=True)
    encoded = wire.encode(capture.module)
    decoded = wire.decode(encoded.body, module_class=LazyModule)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    for number, node in enumerate(decoded.graph.nodes):
        value = wire.materialize(node, mode)
        if number % 2:
            node.meta["val"] = value
    assert wire.encode(decoded).body == encoded.body


def test_values_survive_copies_and_can_be_left_out() -> None:
    (capture,) = captures.exported(nn.Linear(4, 4), {"input": torch.ones(2, 4)})
    encoded = wire.encode(capture.module)
    decoded = wire.decode(encoded.body, module_class=LazyModule)
    assert wire.encode(copy.deepcopy(decoded)).nodes == encoded.nodes
    graph = torch.fx.Graph()
    graph.output(graph.graph_copy(decoded.graph, {}))
    assert sum(wire.META_KEY in node.meta for node in graph.nodes) >= 3
    bare = wire.decode(encoded.body, metadata="none", module_class=LazyModule)
    assert all(not node.meta for node in bare.graph.nodes)
    assert wire.materialize(next(iter(bare.graph.nodes)), FakeTensorMode()) is None


def test_symbolic_numbers_as_literal_arguments_come_back() -> None:
    (capture,) = captures.exported(*models.gpt2(layers=1), dynamic=True)
    size = next(
        s
        for node in capture.module.graph.nodes
        for s in getattr(node.meta.get("val"), "shape", ())
        if isinstance(s, torch.SymInt)
    )
    module = call("x", [size * 2, size + 1, 3])
    encoded = wire.encode(module)
    decoded = wire.decode(encoded.body, module_class=LazyModule)
    assert wire.encode(decoded).body == encoded.body
    doubled, following, plain = list(decoded.graph.nodes)[1].args[1]
    assert (doubled.node.hint, following.node.hint, plain) == (
        2 * size.node.hint,
        size.node.hint + 1,
        3,
    )
