"""What tensors look like, compared by torch in one call.

Dynamo compiles this check for its own caches; it has no public name. It compares class,
dispatch keys, dtype, device, requires_grad, sizes and strides of many tensors in the time that
reading one attribute of each takes in Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch._C._dynamo.guards import TensorGuards

Check = Callable[..., bool]


def tensor_check(tensors: Sequence[torch.Tensor]) -> Check:
    """A function of the same tensors: whether all look as they do now.

    It says no too where the mode of the thread is another one, such as autocast: doubt
    counts as change.

    Args:
        tensors: Each one once.
    """
    check: Check = TensorGuards(*tensors, dynamic_dims_sizes=None, dynamic_dims_strides=None).check
    return check
