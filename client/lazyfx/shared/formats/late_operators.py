"""Operators of torch that are there only once a module of torch's has been imported."""

from __future__ import annotations

from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.targets import target_lists
from lazyfx.shared.wire.targets.operator_schemas import operator_of


def refuse_late_operators(module: GraphModule) -> None:
    """Check that `torch.export.load` and `torch.jit.load` find every operator of a graph.

    Raises:
        UnsupportedGraphError: They would not find one in a process that has imported torch alone;
            names the node.
    """
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            operator = operator_of(node.target)
            registered_by = operator and target_lists.LATE_NAMESPACES.get(operator.namespace)
            if operator and registered_by:
                raise UnsupportedGraphError(
                    f"{operator.namespace}.{operator.name} is there only once {registered_by} has "
                    "been imported, which loading such a file does not do",
                    node=node.name,
                    remedy="save_pickle, save_package and save_code import it",
                )
