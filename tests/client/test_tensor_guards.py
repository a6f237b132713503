"""Dynamo's tensor guards detect every change of a tensor that changes the digest."""

from __future__ import annotations

import pytest
import torch

from lazyfx.capture.tensor_guards import tensor_check


def test_torch_still_has_the_check():
    from torch._C._dynamo.guards import TensorGuards

    assert TensorGuards(torch.ones(2), dynamic_dims_sizes=None, dynamic_dims_strides=None).check(
        torch.ones(2)
    ), "torch has changed TensorGuards; see lazyfx/capture/tensor_guards.py"


CHANGES = {
    "dtype": lambda t: setattr(t, "data", t.data.double()),
    "shape": lambda t: setattr(t, "data", t.data.reshape(3, 2)),
    "strides": lambda t: setattr(t, "data", t.data.t().contiguous().t()),
    "requires_grad": lambda t: t.requires_grad_(not t.requires_grad),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("place", [0, 1])
def test_every_look_counts(change, place):
    tensors = [torch.randn(2, 3), torch.nn.Parameter(torch.randn(2, 3))]
    check = tensor_check(tensors)
    assert check(*tensors)
    change(tensors[place])
    assert not check(*tensors)


def test_values_do_not_count():
    tensors = [torch.randn(2, 3)]
    check = tensor_check(tensors)
    tensors[0].add_(1)
    assert check(*tensors)


def test_another_mode_of_the_thread_is_doubt():
    tensors = [torch.randn(2, 3)]
    check = tensor_check(tensors)
    with torch.autocast("cpu"):
        assert not check(*tensors)
    assert check(*tensors)


def test_no_tensors_are_always_the_same():
    assert tensor_check([])()
