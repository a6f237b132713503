"""Compares the metadata of many tensors in one call to torch.

Dynamo uses this check for its own caches; it is not public. It compares class, dispatch keys,
dtype, device, requires_grad, sizes and strides of many tensors in the time that Python needs to
read one attribute of each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C._dynamo.guards import TensorGuards

Check = Callable[..., bool]


def tensor_check(tensors: Sequence[torch.Tensor]) -> Check:
    """A function of the same tensors that returns whether their metadata is unchanged.

    It also returns False in another thread mode, such as autocast: if in doubt, it counts as
    changed.

    Args:
        tensors: The tensors, without duplicates.
    """
    check: Check = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    return check
