"""Floats that dynamo made symbolic: they are graph inputs until their value is needed.

torch turns computations on such a float into tensor operations. If it finds out late that it
cannot, dynamo traces the frame again with that float as a constant. Dynamo runs here but the server
finds out, so it names the inputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NoReturn

import torch
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.errors import ArtifactError
from lazyfx.shared.native.shape_guards import float_symbols
from lazyfx.shared.native.torch_inductor import (
    SymT,
    TensorifyScalarRestartAnalysis,
    TensorifyState,
    backed_values,
    symbol_is_type,
)


class InitialFloats:
    """Remembers the floats of graphs at their first compile.

    For callers who do not wait: the server's answer comes too late for dynamo to trace again. Most
    symbolic floats never change (with `dynamic=True` even an epsilon is one), so all of them are
    constants at first; if a graph comes back with another value, its floats stay symbolic.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], tuple[float, ...]] = {}

    def specialize(self, module: GraphModule) -> None:
        """Make dynamo trace the frame of a graph again if it has float inputs.

        Raises:
            TensorifyScalarRestartAnalysis: Handled by dynamo.
        """
        found = _symbolic(module)
        place = tuple(node.name for node in module.graph.nodes)
        values = tuple(found.values())
        if found and self._values.setdefault(place, values) == values:
            restart_tracing(found)


def specialize_unsent(module: GraphModule) -> None:
    """Make dynamo trace again if the graph depends on floats that are not its inputs.

    Tracing needed their values, so torch makes them constants too.

    Raises:
        TensorifyScalarRestartAnalysis: Handled by dynamo.
    """
    found = _symbolic(module)
    for symbol in float_symbols(_described(module)).values():
        found.pop(symbol.name, None)
    if found:
        restart_tracing(found)


def specialize_inputs(module: GraphModule, numbers: Sequence[int]) -> NoReturn:
    """Make dynamo trace the frame of a graph again, with some inputs as constants.

    Args:
        module: The graph.
        numbers: Positions of inputs that each hold a float.

    Raises:
        TensorifyScalarRestartAnalysis: Handled by dynamo.
        ArtifactError: They do not.
    """
    symbols = float_symbols(_described(module))
    names = [symbols[number].name for number in numbers if number in symbols]
    if len(names) < len(numbers) or all(map(TensorifyState.should_specialize, names)):
        raise ArtifactError("the server requests constants for inputs that hold no floats")
    restart_tracing(names)


def restart_tracing(names: Iterable[str]) -> NoReturn:
    """Make dynamo trace the frame again, with some floats as constants.

    Raises:
        TensorifyScalarRestartAnalysis: Handled by dynamo.
    """
    for name in names:
        TensorifyState.specialize(name)
    raise TensorifyScalarRestartAnalysis


def _symbolic(module: GraphModule) -> dict[str, float]:
    """Symbols of floats in the trace of a graph, and their values in this call.

    Includes those that tracing has already specialized: their inputs still exist.
    """
    env = _shape_env(module)
    return {
        str(symbol): float(value)
        for symbol, value in (backed_values(env) if env else {}).items()
        if symbol_is_type(symbol, SymT.FLOAT) and not TensorifyState.should_specialize(str(symbol))
    }


def _shape_env(module: GraphModule) -> ShapeEnv | None:
    """The ShapeEnv of a graph's floats; None if it has none."""
    for node in module.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat):
            env: ShapeEnv = value.node.shape_env
            return env
    return None


def _described(module: GraphModule) -> list[object]:
    nodes: Iterable[Node] = module.graph.nodes
    return [
        node.meta.get("example_value", node.meta.get("val"))
        for node in nodes
        if node.op == "placeholder"
    ]
