"""Names the nested graphs of a module so that torch compiles as one only what is one.

torch traces one nested graph for all calls with the same identifier, whatever they call and with
whatever operands. dynamo chooses identifiers so that this is right. In a graph that passes have
changed, or that a caller has written, it need not be; so each graph gets an identifier for each
kind of operands.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch.fx import GraphModule, Node

from lazyfx_server.jobs.native.equal_blocks.forms import UnknownValueError, facts_of
from lazyfx_server.passes.analysis.walk import attribute_at, graph_modules
from lazyfx_server.passes.patterns.literal_keys import literal_key


def name_regions(module: GraphModule) -> None:
    """Give calls of nested graphs (`invoke_subgraph`) identifiers of our own, in place."""
    known: dict[Hashable, str] = {}
    for part in graph_modules(module):
        for node in part.graph.find_nodes(
            op="call_function", target=torch.ops.higher_order.invoke_subgraph
        ):
            body, _, *operands = node.args
            key = _key(part, body, operands)
            node.update_arg(1, known.setdefault(key, f"region_{len(known)}"))


def _key(part: GraphModule, body: object, operands: Sequence[Any]) -> Hashable:
    """What a call computes; unlike any other if that is not known."""
    if not isinstance(body, Node) or body.op != "get_attr":
        return object()
    try:
        facts = tuple(
            facts_of(operand.meta.get("example_value"))
            if isinstance(operand, Node)
            else literal_key(operand)
            for operand in operands
        )
        return id(attribute_at(part, str(body.target))), facts
    except UnknownValueError:
        return object()
