"""Process groups of a graph that is compiled where there are none; imported only in native jobs.

Inductor asks for the size of a collective's group, to estimate how long it takes. Nothing runs
here, so a group that talks to nobody will do. Its rank is 0 for every caller: Inductor reads it
only in passes that are off by default, with settings that callers cannot send.
"""

# ruff: noqa: SLF001 - that is what this file is for

from __future__ import annotations

from typing import Any, Final

import torch
import torch.distributed as dist
from torch.fx import GraphModule, Node

from lazyfx.shared.wire.targets.operator_schemas import argument_place

# Of a group whose operators do not say how large it is: it is used for estimates only.
_UNKNOWN_SIZE: Final = 2
_MOST_RANKS: Final = 1 << 20


def register_stand_ins(module: GraphModule) -> None:
    """Register a group for each name of one that a graph uses, for the life of this process."""
    sizes: dict[str, int] = {}
    for graph in _graphs(module):
        for node in graph.graph.nodes:
            name = _argument(node, "group_name")
            if isinstance(name, str):
                size = _argument(node, "group_size")
                if isinstance(size, int) and 1 < size <= _MOST_RANKS:
                    sizes[name] = size
                sizes.setdefault(name, _UNKNOWN_SIZE)
    for name, size in sizes.items():
        _register(name, size)


def _graphs(module: GraphModule) -> list[GraphModule]:
    return [each for each in module.modules() if isinstance(each, GraphModule)]


def _argument(node: Node, name: str) -> object:
    """An argument of an operator's call by its name; None if it has none."""
    place = argument_place(node.target, name)
    if place is None:
        return None
    return node.args[place] if place < len(node.args) else node.kwargs.get(name)


def _register(name: str, size: int) -> None:
    c10d: Any = torch._C._distributed_c10d
    make: Any = dist.ProcessGroup  # its stub wants a store
    group = make(0, size)
    fake = c10d.FakeProcessGroup._create_internal(0, size)
    kind = dist.ProcessGroup.BackendType.CUSTOM
    for device in ("cpu", "cuda"):
        group._register_backend(torch.device(device), kind, fake)
    group._set_group_name(name)
    c10d._register_process_group(name, group)
    _kept.append(group)


# The registry does not keep groups alive; this process ends with its job.
_kept: list[Any] = []
