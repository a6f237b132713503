"""Floats that dynamo made symbolic: inputs of the graph, until their value is needed.

torch turns what is computed from such a float into operations on tensors, and finds out late where
it cannot; then dynamo traces the frame again with that float as a constant. Dynamo is here and what
finds out is on the server, which therefore names the inputs.
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
    """Remembers which floats graphs had when they were first compiled.

    For callers who do not wait: what the server finds out comes too late to have dynamo trace
    again. Most symbolic floats never change (`dynamic=True` makes them of an epsilon), so all of
    them are constants at first; those of a graph that comes with another value stay symbolic.
    """

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], tuple[float, ...]] = {}

    def specialize(self, module: GraphModule) -> None:
        """Have dynamo trace the frame of a graph again if floats are inputs of it.

        Raises:
            TensorifyScalarRestartAnalysis: dynamo's own, which it must get.
        """
        found = _symbolic(module)
        place = tuple(node.name for node in module.graph.nodes)
        values = tuple(found.values())
        if found and self._values.setdefault(place, values) == values:
            restart_tracing(found)


def specialize_unsent(module: GraphModule) -> None:
    """Have dynamo trace again if the graph depends on floats that are not inputs of it.

    Tracing itself has needed their values; torch makes them constants too.

    Raises:
        TensorifyScalarRestartAnalysis: dynamo's own, which it must get.
    """
    found = _symbolic(module)
    for symbol in float_symbols(_described(module)).values():
        found.pop(symbol.name, None)
    if found:
        restart_tracing(found)


def specialize_inputs(module: GraphModule, numbers: Sequence[int]) -> NoReturn:
    """Have dynamo trace the frame of a graph again, with some inputs as constants.

    Args:
        module: The graph.
        numbers: Of inputs that hold a float each.

    Raises:
        TensorifyScalarRestartAnalysis: dynamo's own, which it must get.
        ArtifactError: They hold none.
    """
    symbols = float_symbols(_described(module))
    names = [symbols[number].name for number in numbers if number in symbols]
    if len(names) < len(numbers) or all(map(TensorifyState.should_specialize, names)):
        raise ArtifactError("the server requests constants for inputs that hold no floats")
    restart_tracing(names)


def restart_tracing(names: Iterable[str]) -> NoReturn:
    """Have dynamo trace the frame again, with some floats as constants.

    Raises:
        TensorifyScalarRestartAnalysis: dynamo's own, which it must get.
    """
    for name in names:
        TensorifyState.specialize(name)
    raise TensorifyScalarRestartAnalysis


def _symbolic(module: GraphModule) -> dict[str, float]:
    """Symbols of floats that a graph was traced with, and what they stand for in this call.

    Those that tracing has fixed by itself count too: their inputs are still there.
    """
    env = _shape_env(module)
    return {
        str(symbol): float(value)
        for symbol, value in (backed_values(env) if env else {}).items()
        if symbol_is_type(symbol, SymT.FLOAT) and not TensorifyState.should_specialize(str(symbol))
    }


def _shape_env(module: GraphModule) -> ShapeEnv | None:
    """Where the floats of a graph live; None if it has none."""
    for node in module.graph.nodes:
        value = node.meta.get("example_value")
        if isinstance(value, torch.SymFloat):
            env: ShapeEnv = value.node.shape_env
            return env
    return None


def _described(module: GraphModule) -> list[object]:
    nodes: Iterable[Node] = module.graph.nodes
    return [node.meta.get("example_value") for node in nodes if node.op == "placeholder"]
