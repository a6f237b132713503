"""torch's functional tensors: their private names, in one place.

Inside `torch.func.functionalize` a tensor is a wrapper around its current value. Writes replace
that value; views of a tensor are computed again from it when they are used next. Present from torch
2.11 to 2.13; a test uses every name.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._C import _functorch


def current_value(wrapper: Tensor) -> Tensor:
    """The value of a functional tensor after all writes to it so far."""
    torch._sync(wrapper)  # type: ignore[attr-defined]  # noqa: SLF001
    value: Tensor = _functorch._unwrap_functional_tensor(wrapper, True)  # noqa: SLF001
    return value


def set_value(wrapper: Tensor, value: Tensor) -> None:
    """Lets a functional tensor, and with it all views of it, have another value from now on."""
    torch._functionalize_replace(wrapper, value)  # noqa: SLF001
    torch._functionalize_commit_update(wrapper)  # noqa: SLF001


def has_other_sizes(wrapper: Tensor) -> bool:
    """Whether a call changed the sizes or strides of a functional tensor (`t_`, `resize_`)."""
    return bool(torch._functionalize_has_metadata_mutation(wrapper))  # noqa: SLF001
