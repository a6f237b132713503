"""Floats that vary between calls: zero-dimensional inputs, read by `item()`.

torch turns computations on them into tensor operations. Where it cannot, it wants dynamo to trace
again with them as constants. Dynamo runs at the caller, which gets the list of them.
"""

from __future__ import annotations

from collections.abc import Mapping

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from lazyfx.shared.native.torch_inductor import TensorifyState
from lazyfx_server.jobs.native.conditions import CannotCompile


def recall_items(module: GraphModule) -> None:
    """Associate each input with the number that the graph reads from it, as in the original trace.

    Args:
        module: Its nodes have `meta["example_value"]`.
    """
    for node in module.graph.nodes:
        number = node.meta.get("example_value")
        if node.target != "item" or not isinstance(number, torch.SymFloat) or not node.args:
            continue
        source = node.args[0]
        if not isinstance(source, Node) or source.op != "placeholder":
            continue
        tensor = source.meta.get("example_value")
        if isinstance(tensor, FakeTensor) and number.node.hint is not None:
            tensor.item_memo = number


def requested_constants(floats: Mapping[int, sympy.Symbol]) -> list[int]:
    """The positions of inputs whose floats torch wants to be constants.

    Args:
        floats: The symbols of floats, by the position of the input that holds each.

    Raises:
        CannotCompile: The float is not in an input.
    """
    wanted = [n for n, symbol in floats.items() if TensorifyState.should_specialize(symbol.name)]
    if not wanted:
        raise CannotCompile("torch requires a float to be constant that is not an input")
    return wanted
