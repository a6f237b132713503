"""Passes that compute metadata: shapes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx_server.passes.analysis import operator_facts
from lazyfx_server.passes.analysis.fake_calls.torch_fake_tensors import is_plain, same_memory
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun, same_metadata
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.walk import graph_modules, target_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class ShapePropagation(Pass):
    """Computes shape, dtype, stride and device of every value with fake tensors.

    Starts from the metadata of the inputs and sets `meta["val"]` where it was missing or different.
    Computes unknown values (of nodes that passes created) and what depends on them; the rest is as
    captured. No kernel runs, so a graph for CUDA works on any host. Values that cannot be computed
    keep their metadata. Nested GraphModules start from the metadata of their own inputs.
    """

    name: ClassVar[str] = "shape_propagation"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    recompute: bool = field(
        default=False,
        metadata={"help": "Compute every value, even if the capture has its metadata."},
    )

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Propagates from the inputs; the graph itself is not changed."""
        root = self._propagated(module)
        inside = [self._propagated(part) for part in graph_modules(module)[1:]]
        changed = root.changed or any(result.changed for result in inside)
        return PassResult(module, changed, root.note)

    def _propagated(self, module: GraphModule) -> PassResult:
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        run = FakeRun(module, repeat=True)
        given = [run.is_known(node) for node in inputs]
        if inputs and not any(given):
            return PassResult(module, False, "skipped: the inputs have no shapes")
        every = self.recompute or any(map(_hides_metadata, module.graph.nodes))
        if not every and all(_is_settled(run, node) for node in module.graph.nodes):
            return PassResult(module, False)
        changed, unknown = in_fresh_thread(lambda: _propagate(module, run, every=every))
        notes = []
        if not all(given):
            notes.append(f"{given.count(False)} inputs have no shapes")
        if unknown:
            notes.append(f"{unknown} values unknown")
        return PassResult(module, changed > 0, ", ".join(notes))


# Calls that change the metadata of their operands.
_HIDING = operator_facts.words(
    "t_ transpose_ swapaxes_ swapdims_ squeeze_ unsqueeze_ resize_ resize_as_ as_strided_ set_ "
    "data _add_batch_dim _remove_batch_dim _vmap_increment_nesting"
)


def _hides_metadata(node: Node) -> bool:
    target: Any = node.target
    if isinstance(target, OpOverload):
        return target_name(target) in _HIDING
    return (target if isinstance(target, str) else getattr(target, "__name__", "")) in _HIDING


def _is_settled(run: FakeRun, node: Node) -> bool:
    """Whether nothing needs to be computed for a node."""
    if node.op == "get_attr":
        return run.is_known(node) or not isinstance(run.attribute_value(node), torch.Tensor)
    return node.op in {"placeholder", "output"} or run.is_known(node)


def _propagate(module: GraphModule, run: FakeRun, *, every: bool) -> tuple[int, int]:
    """Sets new metadata; returns how many nodes changed and how many are still unknown."""
    moved: set[Node] = set()
    before = {node: run.known(node) for node in module.graph.nodes} if every else {}
    changed = unknown = 0
    with run.active():
        for node in module.graph.nodes:
            if node.op == "output":
                continue
            operands = node.all_input_nodes
            if not every and run.is_known(node) and moved.isdisjoint(operands):
                continue
            for operand in operands:
                run.recall(operand)
            old = before[node] if every else run.known(node)
            value = run.compute(node)
            if value is UNKNOWN:
                unknown += 1
            elif _is_described(value) and not same_metadata(old, value):
                _write(node, value, run.mode)
                moved.add(node)
                changed += 1
    return changed, unknown


def _is_described(value: Any) -> bool:
    """Whether metadata can represent the value: tensors, numbers, None, and sequences of those."""
    if value is None:
        return False
    leaves = tree_leaves(value)
    kinds = FakeTensor | torch.SymInt | torch.SymFloat | torch.SymBool | bool | int | float | None
    return bool(leaves) and all(isinstance(leaf, kinds) for leaf in leaves)


def _write(node: Node, value: Any, mode: FakeTensorMode) -> None:
    # A later in-place operation may change the value, but must not change this metadata.
    def kept(leaf: Any) -> Any:
        if not isinstance(leaf, FakeTensor):
            return leaf
        return same_memory(leaf) if is_plain(leaf, mode) else leaf.detach()

    node.meta["val"] = kept(value) if isinstance(value, FakeTensor) else tree_map(kept, value)
