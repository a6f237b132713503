"""Walks over a module that several passes share."""

from __future__ import annotations

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule


def graph_modules(module: GraphModule) -> list[GraphModule]:
    """The module and every GraphModule inside it, parents before children, each once."""
    return [part for part in module.modules() if isinstance(part, GraphModule)]


def attribute_at(module: torch.nn.Module | None, path: str) -> object:
    """The attribute at a dotted path, or None."""
    value: object = module
    for part in path.split("."):
        value = getattr(value, part, None)
    return value


def unused_name(module: torch.nn.Module, stem: str) -> str:
    """The first of `<stem>0`, `<stem>1`, ... that is no attribute of the module."""
    number = 0
    while hasattr(module, f"{stem}{number}"):
        number += 1
    return f"{stem}{number}"


def target_name(target: object) -> str:
    """Name of what is called, without namespace and overload: "split" of `aten::split.Tensor`."""
    if isinstance(target, OpOverload):
        name = target._schema.name  # noqa: SLF001 - there is no public way
    elif isinstance(target, OpOverloadPacket):
        name = target._qualified_op_name  # noqa: SLF001 - as above
    elif isinstance(target, str):
        name = target
    else:
        name = str(getattr(target, "__name__", ""))
    return name.rpartition("::")[2]
