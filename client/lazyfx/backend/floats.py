"""Floats that dynamo made symbolic: fixed, by having it trace the frame again.

With `dynamic=True` every float of a module (an epsilon, a dropout rate) is an input. torch's own
backend finds out late which of them cannot stay one, and has dynamo start anew; a server cannot,
so all of them are fixed before it is asked.
"""

from __future__ import annotations

from typing import Final

import torch
from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.native.torch_names import (
    SymT,
    TensorifyScalarRestartAnalysis,
    TensorifyState,
    backed_values,
    symbol_is_type,
)

# A frame is traced again for each value of a fixed float, and dynamo bears a few such traces only.
_MOST_VALUES: Final = 3


class FixedFloats:
    """Remembers which graphs have been traced again, and for how many values."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], set[tuple[float, ...]]] = {}

    def fix(self, module: GraphModule) -> None:
        """Have dynamo trace the frame of a graph again if floats are inputs of it.

        Raises:
            TensorifyScalarRestartAnalysis: dynamo's own, which it must get.
            UnsupportedGraphError: The floats change from call to call.
        """
        found = _symbolic_floats(module)
        if not found:
            return
        place = tuple(node.name for node in module.graph.nodes)
        known = self._values.setdefault(place, set())
        known.add(tuple(found.values()))
        if len(known) > _MOST_VALUES:
            raise UnsupportedGraphError(
                "a float that changes from call to call is an input of the graph",
                remedy="make it a tensor",
            )
        for name in found:
            TensorifyState.specialize(name)
        raise TensorifyScalarRestartAnalysis


def _symbolic_floats(module: GraphModule) -> dict[str, float]:
    """Symbols of floats that a graph was traced with, and what they stand for in this call.

    Those that tracing has fixed by itself count too: their inputs are still there.
    """
    for node in module.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat):
            known = backed_values(value.node.shape_env)
            return {str(k): float(v) for k, v in known.items() if symbol_is_type(k, SymT.FLOAT)}
    return {}
