"""Which arguments of calls are the same to torch: 1, True and 1.0 are not, nor are 0.0 and -0.0."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import Argument


def literal_key(value: Argument, node_key: Callable[[Node], Hashable] = id) -> Hashable:
    """A value as a key: equal keys mean the same argument, type included.

    Args:
        value: An argument of a call.
        node_key: Which nodes are the same; by default, each is only itself.
    """
    value_: Any = value

    def key(part: Any) -> Hashable:
        return literal_key(part, node_key)

    if isinstance(value_, Node):
        return ("node", node_key(value_))
    if isinstance(value_, slice):
        return ("slice", key(value_.start), key(value_.stop), key(value_.step))
    if isinstance(value_, dict):
        return ("dict", tuple((key(k), key(v)) for k, v in value_.items()))
    if isinstance(value_, list | tuple):
        return (type(value_).__name__, tuple(map(key, value_)))
    if isinstance(value_, float | complex):
        return (type(value_), repr(value_))  # 0.0 and -0.0 differ, nan is itself
    if value_ is None or isinstance(
        value_,
        bool
        | int
        | str
        | torch.dtype
        | torch.device
        | torch.layout
        | torch.memory_format
        | type(Ellipsis),
    ):
        return (type(value_), value_)
    return ("object", id(value_))
