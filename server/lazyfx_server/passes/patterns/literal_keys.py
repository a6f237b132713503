"""Which arguments of calls are the same to torch: 1, True and 1.0 are not, nor are 0.0 and -0.0."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import torch
from torch.fx import Node
from torch.fx.node import Argument


def literal_key(value: Argument) -> Hashable:
    """A value as a key: equal keys mean the same argument, type included."""
    value_: Any = value
    if isinstance(value_, Node):
        return ("node", id(value_))
    if isinstance(value_, slice):
        return (
            "slice",
            literal_key(value_.start),
            literal_key(value_.stop),
            literal_key(value_.step),
        )
    if isinstance(value_, dict):
        return ("dict", tuple((literal_key(k), literal_key(v)) for k, v in value_.items()))
    if isinstance(value_, list | tuple):
        return (type(value_).__name__, tuple(literal_key(item) for item in value_))
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
