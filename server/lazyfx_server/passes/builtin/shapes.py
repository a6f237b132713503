"""Passes that compute metadata: shapes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.fake import UNKNOWN, FakeRun, in_fresh_thread, same_metadata


@dataclass(frozen=True)
class ShapePropagation(Pass):
    """Computes shape, dtype, stride and device of every value with fake tensors.

    Starts from the metadata of the inputs and writes `meta["val"]` where nothing or
    something else was known. No kernel runs, so a graph for CUDA works on any host.
    Values that cannot be computed keep what was known of them. The bodies of
    higher-order operators keep the metadata that they have.
    """

    name: ClassVar[str] = "shape_propagation"
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Propagates from the inputs; the graph itself stays as it is."""
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        run = FakeRun(module)
        given = [run.known(node) is not UNKNOWN for node in inputs]
        if inputs and not any(given):
            return PassResult(module, False, "skipped: the inputs carry no shapes")
        changed, unknown = in_fresh_thread(lambda: _propagate(module, run))
        notes = []
        if not all(given):
            notes.append(f"{given.count(False)} inputs carry no shapes")
        if unknown:
            notes.append(f"{unknown} values unknown")
        return PassResult(module, changed > 0, ", ".join(notes))


def _propagate(module: GraphModule, run: FakeRun) -> tuple[int, int]:
    """Writes what is new; returns how many nodes changed and how many stay unknown."""
    before = {node: run.known(node) for node in module.graph.nodes}
    changed = unknown = 0
    with run.active():
        for node in module.graph.nodes:
            if node.op == "output":
                continue
            value = run.compute(node)
            if value is UNKNOWN:
                unknown += 1
            elif _is_described(value) and not same_metadata(before[node], value):
                _write(node, value)
                changed += 1
    return changed, unknown


def _is_described(value: Any) -> bool:
    """Whether metadata can hold the value: tensors, numbers, and sequences of those and None."""
    if value is None:
        return False
    leaves = tree_leaves(value)
    kinds = FakeTensor | torch.SymInt | torch.SymFloat | torch.SymBool | bool | int | float | None
    return bool(leaves) and all(isinstance(leaf, kinds) for leaf in leaves)


def _write(node: Node, value: Any) -> None:
    # A later in-place operation may change the value; the metadata stays.
    node.meta["val"] = tree_map(
        lambda leaf: leaf.detach() if isinstance(leaf, FakeTensor) else leaf, value
    )
