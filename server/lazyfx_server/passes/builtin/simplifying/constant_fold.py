"""Passes that compute at compile time: constant folding."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node

from lazyfx_server.passes.analysis.constants import (
    ConstantNodes,
    ConstantRules,
    compute,
    find_constants,
    may_read_tensors,
)
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.walk import attribute_at, unused_name
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.errors import PassError


@dataclass(frozen=True)
class ConstantFold(Pass):
    """Folds expressions that depend only on literals and constant tensors.

    Results become tensor attributes `_folded_<i>` of the root. Folds creation operators (arange,
    full, zeros, ...), buffers and lifted constants with known values; trained parameters only on
    request. Does not fold random draws, side effects, values that are written later or returned to
    the caller, large values, or nested GraphModules. Buffers are folded with their current values.
    """

    name: ClassVar[str] = "constant_fold"
    version: ClassVar[int] = 3
    needs_values: ClassVar[bool] = True

    max_bytes: int = field(
        default=1024 * 1024, metadata={"help": "Maximum size of a folded value in bytes."}
    )
    fold_buffers: bool = field(
        default=True, metadata={"help": "Fold buffers too, with their current values."}
    )
    fold_parameters: bool = field(
        default=False,
        metadata={
            "help": "Fold parameters that require grad too; they cannot be trained in the result."
        },
    )

    def __post_init__(self) -> None:
        if self.max_bytes < 0:
            raise ValueError("max_bytes must not be negative")

    def values_read(self, module: GraphModule) -> frozenset[str]:
        """Paths of the buffers and constants that something foldable reads."""
        rules = self._rules(need_values=False)
        if not may_read_tensors(module, rules):
            return frozenset()
        return _tensors_read(module, find_constants(module, rules))

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Folds in place.

        Raises:
            PassError: The results would have more than `max_folded_bytes` bytes (kind "limit").
        """
        found = find_constants(module, self._rules(need_values=True))
        if not found.results:
            return PassResult(module, False)
        size, most = found.bytes(), context.limits.bound("max_folded_bytes")
        if size > most.most:
            raise PassError(
                f"the folded constants would have {size} bytes; the limit is "
                f"{most.most}{most}; lower max_bytes",
                kind="limit",
                field="options.max_bytes",
            )
        wanted = set(found.results)
        values = in_fresh_thread(lambda: compute(module, found.needed(), wanted))
        folded = [
            node for node in found.results if node in values and _put(module, node, values[node])
        ]
        if not folded:
            return PassResult(module, False, "nothing could be computed on this host")
        _remove_unused(module, found)
        module.recompile()
        return PassResult(module, True, f"{len(folded)} constants, {size} bytes")

    def _rules(self, *, need_values: bool) -> ConstantRules:
        return ConstantRules(
            parameters=self.fold_parameters,
            buffers=self.fold_buffers,
            max_bytes=self.max_bytes,
            need_values=need_values,
        )


def _tensors_read(module: GraphModule, found: ConstantNodes) -> frozenset[str]:
    paths: set[str] = set()
    for node in found.needed():
        path = str(node.target)
        if node.op == "get_attr":
            paths.add(path)
        elif node.op == "call_module":
            called = module.get_submodule(path)
            tensors = (*called.named_parameters(), *called.named_buffers())
            paths.update(f"{path}.{name}" for name, _ in tensors)
    return frozenset(p for p in paths if isinstance(attribute_at(module, p), torch.Tensor))


def _put(module: GraphModule, node: Node, value: Any) -> bool:
    """Replaces a node by an attribute; False if the value is not as predicted."""
    if type(value) not in (torch.Tensor, torch.nn.Parameter):
        return False
    name = unused_name(module, "_folded_")
    # A copy: the value may share storage with an attribute, or with another result.
    setattr(module, name, value.detach().clone(memory_format=torch.preserve_format))
    with node.graph.inserting_before(node):
        constant = node.graph.create_node("get_attr", name)
    constant.meta = dict(node.meta)
    node.replace_all_uses_with(constant)
    return True


def _remove_unused(module: GraphModule, found: ConstantNodes) -> None:
    for node in reversed(found.nodes):
        if not node.users:
            module.graph.erase_node(node)
