"""Floats that change from call to call: inputs without dimensions, read by `item()`.

torch turns what is computed from them into operations on tensors. Where it cannot, it wants them to
be constants and dynamo to trace again; dynamo is with the caller, who is told which ones.
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
    """Let each input know the number that the graph reads from it, as it does where it was traced.

    Args:
        module: The values of its nodes are at `meta["example_value"]`.
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
    """Inputs whose floats torch has asked to be constants, by number.

    Args:
        floats: The symbols of floats, by the number of the input that holds each.

    Raises:
        CannotCompile: It has asked for what no input holds.
    """
    wanted = [n for n, symbol in floats.items() if TensorifyState.should_specialize(symbol.name)]
    if not wanted:
        raise CannotCompile("torch wants a float to be a constant that is not an input")
    return wanted
