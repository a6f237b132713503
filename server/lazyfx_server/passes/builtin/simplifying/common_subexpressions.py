"""Passes that compute equal values once: common subexpressions."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.patterns.literal_keys import literal_key


@dataclass(frozen=True)
class CommonSubexpressionElimination(Pass):
    """Computes equal values once: merges nodes with the same target and operands.

    Never merges random draws or anything with a side effect, values whose storage is written
    between or after them, values on different sides of a context switch (autocast, grad mode,
    vmap), or two values that are returned to the caller. Literals are compared with their types: 1,
    True and 1.0 differ. The first node is kept, with its name and metadata.
    """

    name: ClassVar[str] = "common_subexpression_elimination"
    version: ClassVar[int] = 3

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002
        """Merges equal nodes in place, including in nested GraphModules."""
        merged = sum(_merge_equal(part) for part in graph_modules(module))
        return PassResult(module, merged > 0, f"{merged} nodes merged" if merged else "")


def _merge_equal(module: GraphModule) -> int:
    storage = StorageMap(module.graph)
    first: dict[Hashable, Node] = {}
    region = merged = 0
    for node in list(module.graph.nodes):
        effects = storage.effects[node]
        if effects.state:
            region += 1
        if node.op in {"placeholder", "output"} or not (effects.pure and effects.mergeable):
            continue
        key = (region, _key(node, storage))
        twin = first.setdefault(key, node)
        if twin is node:
            continue
        if storage.escapes(twin) and storage.escapes(node):
            continue
        if storage.written_after(twin) or storage.written_after(node):
            continue
        node.replace_all_uses_with(twin)
        module.graph.erase_node(node)
        merged += 1
    if merged:
        module.recompile()
    return merged


def _key(node: Node, storage: StorageMap) -> Hashable:
    """A key that equal nodes share; includes the state of their operands' storage."""
    position = storage.position[node]
    operands = node.all_input_nodes
    epochs = tuple(storage.writes_before(operand, position) for operand in operands)
    epochs += storage.held_writes_before(node, position)
    if node.op == "get_attr":
        # Reading an attribute sees earlier writes to it.
        epochs = (storage.writes_before(node, position),)
    kwargs = tuple((name, literal_key(node.kwargs[name])) for name in sorted(node.kwargs))
    target: Hashable = node.target if isinstance(node.target, str) else id(node.target)
    return (node.op, target, literal_key(node.args), kwargs, epochs)
