"""Operators of torch that are registered only when some module of torch is imported."""

# ruff: noqa: SLF001 - operators have no public class

from __future__ import annotations

import torch
from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.targets import target_lists


def refuse_late_operators(module: GraphModule) -> None:
    """Check that `torch.export.load` and `torch.jit.load` find every operator of a graph.

    Raises:
        UnsupportedGraphError: One would be missing in a process that has only imported torch; names
            the node.
    """
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            target = node.target
            if isinstance(target, torch._ops.OpOverload):
                target = target.overloadpacket
            if not isinstance(target, torch._ops.OpOverloadPacket):
                continue
            namespace = target._qualified_op_name.partition("::")[0]
            registered_by = target_lists.LATE_NAMESPACES.get(namespace)
            if registered_by is not None:
                raise UnsupportedGraphError(
                    f"{target} is registered only when {registered_by} is imported, but loading "
                    "such a file does not import it",
                    node=node.name,
                    remedy="use save_pickle, save_package or save_code, which import it",
                )
