"""Helpers to walk over a module, shared by passes."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from lazyfx.shared.wire.targets.operator_schemas import operator_of


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
    """The first of `<stem>0`, `<stem>1`, ... that is not an attribute of the module."""
    number = 0
    while hasattr(module, f"{stem}{number}"):
        number += 1
    return f"{stem}{number}"


def target_name(target: object) -> str:
    """Name of a call target, without namespace and overload: "split" for `aten::split.Tensor`."""
    if (found := operator_of(target)) is not None:
        return found.name
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
