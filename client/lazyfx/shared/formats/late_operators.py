"""Operators of torch that are registered only when some module of torch is imported."""

from __future__ import annotations

from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.targets import target_lists
from lazyfx.shared.wire.targets.operator_schemas import operator_of


def refuse_late_operators(module: GraphModule) -> None:
    """Check that `torch.export.load` and `torch.jit.load` find every operator of a graph.

    Raises:
        UnsupportedGraphError: One would be missing in a process that has only imported torch; names
            the node.
    """
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            operator = operator_of(node.target)
            registered_by = operator and target_lists.LATE_NAMESPACES.get(operator.namespace)
            if operator and registered_by:
                raise UnsupportedGraphError(
                    f"{operator.namespace}.{operator.name} is registered only when {registered_by} "
                    "is imported, but loading such a file does not import it",
                    node=node.name,
                    remedy="use save_pickle, save_package or save_code, which import it",
                )
