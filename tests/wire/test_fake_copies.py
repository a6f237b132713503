"""Fake tensors that are copied are those that torch's constructor makes."""

from __future__ import annotations

import pytest
import torch
from graphs import LazyModule, call
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.shared import wire
from lazyfx.shared.wire.values import fake_copies


def test_this_torch_makes_fake_tensors_as_the_copies_are_made() -> None:
    # When this fails torch has changed its constructor: values are right but built slower.
    assert fake_copies.can_copy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.complex64])
@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_a_copy_is_what_the_constructor_makes(dtype: torch.dtype, device: str) -> None:
    mode = FakeTensorMode(shape_env=ShapeEnv())
    maker = fake_copies.FakeMaker(mode, torch.device(device))

    def meta() -> torch.Tensor:
        return torch.empty_strided((4, 3), (1, 4), dtype=dtype, device="meta")

    expected, found = FakeTensor(mode, meta(), torch.device(device)), maker.make(meta())
    assert vars(found) == vars(expected)
    assert torch._C._dispatch_keys(found) == torch._C._dispatch_keys(expected)
    assert (found.device, found.stride()) == (expected.device, expected.stride())
    with mode:
        assert (found * 2).device == torch.device(device)


def test_a_mode_that_forbids_data_pointers_forbids_those_of_copies() -> None:
    mode = FakeTensorMode()
    mode._allow_unsafe_data_ptr_access = False
    made = fake_copies.FakeMaker(mode, torch.device("cpu")).make(torch.empty(2, device="meta"))
    with pytest.raises(RuntimeError, match="data pointer"):
        made.data_ptr()


def test_equal_values_of_two_nodes_are_two_tensors() -> None:
    module = call("x", 1)
    with FakeTensorMode():
        for node in module.graph.nodes:
            if node.op != "output":
                node.meta["val"] = torch.empty(2, 3).requires_grad_()
    decoded = wire.decode(wire.encode(module).body, module_class=LazyModule)
    for mode in (FakeTensorMode(), FakeTensorMode()):
        first, second, third = (
            wire.materialize(node, mode)
            for node in [*decoded.graph.nodes][:1] * 2 + [*decoded.graph.nodes][1:2]
        )
        assert first is not second
        assert first.untyped_storage()._cdata != second.untyped_storage()._cdata
        assert first.untyped_storage()._cdata != third.untyped_storage()._cdata
        assert {t.fake_mode for t in (first, second, third)} == {mode}
        assert all(t.requires_grad and t.is_leaf for t in (first, second, third))
        first.requires_grad_(False)
        assert second.requires_grad
        assert wire.materialize(next(iter(decoded.graph.nodes)), mode).requires_grad
