"""Passes that remove nodes: dead code, inactive dropout."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn.modules.dropout import _DropoutNd

from lazyfx.shared.wire.calling_convention import has_hooks
from lazyfx_server.passes.analysis import operator_facts
from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import argument, draws_random, effects_of
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class DeadCodeElimination(Pass):
    """Removes nodes whose result is unused and that have no side effects.

    Keeps everything with side effects: in-place methods, functions and operators, `out=`, running
    statistics of normalizations in training mode, random draws, assertions, context switches,
    collectives, and every callable that is not known to be pure. Also cleans nested GraphModules.
    """

    name: ClassVar[str] = "dead_code_elimination"
    version: ClassVar[int] = 2

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002
        """Removes dead nodes; inputs and their order are kept."""
        removed = 0
        # Innermost first: a body that becomes pure may make its caller dead.
        for part in reversed(graph_modules(module)):
            here = 0
            for node in reversed(part.graph.nodes):
                if not node.users and effects_of(node).pure:
                    part.graph.erase_node(node)
                    here += 1
            if here:
                part.recompile()
            removed += here
        return PassResult(module, removed > 0, f"{removed} nodes removed" if removed else "")


@dataclass(frozen=True)
class RemoveDropout(Pass):
    """Removes inactive dropout: in evaluation mode or with probability zero.

    Handles dropout modules, torch.nn.functional, torch and aten, in all variants (feature, alpha,
    in-place). Active dropout is kept, with its draws.
    """

    name: ClassVar[str] = "remove_dropout"
    version: ClassVar[int] = 2

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Replaces each such node by its input, including in nested GraphModules."""
        removed = sum(_remove_dropout(part) for part in graph_modules(module))
        return PassResult(module, removed > 0, f"{removed} dropouts removed" if removed else "")


_DROPOUTS = frozenset(
    (
        "dropout",
        "dropout1d",
        "dropout2d",
        "dropout3d",
        "alpha_dropout",
        "feature_dropout",
        "feature_alpha_dropout",
    )
)


def _remove_dropout(module: GraphModule) -> int:
    nodes = list(module.graph.nodes)
    storage = StorageMap(module.graph) if any(map(_is_native, nodes)) else None
    removed = 0
    for node in nodes:
        if node.op == "call_module":
            passed = _of_module(node, module)
        elif node.op == "call_function":
            passed = _of_native(node, storage) if _is_native(node) else _of_function(node)
        else:
            passed = None
        if passed is None:
            continue
        for picked in list(node.users) if _is_native(node) else []:
            picked.replace_all_uses_with(passed)
            module.graph.erase_node(picked)
        node.replace_all_uses_with(passed)
        module.graph.erase_node(node)
        removed += 1
    if removed:
        module.recompile()
    return removed


def _of_module(node: Node, owner: GraphModule) -> Node | None:
    """The input of an inactive dropout module, else None."""
    called = owner.get_submodule(str(node.target))
    if not isinstance(called, _DropoutNd) or not _is_torchs_own(called):
        return None
    if called.training and called.p != 0:
        return None
    return _input(node)


def _is_torchs_own(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.modules.") and not has_hooks(module)


def _of_function(node: Node) -> Node | None:
    name = operator_name(node).removesuffix("_")
    if name not in _DROPOUTS:
        return None
    target: Any = node.target
    _, functional = operator_facts.torch_functions().get(target, (name, False))
    return None if draws_random(node, name, functional=functional) else _input(node)


_NATIVE = (
    torch.native_dropout,
    torch.ops.aten.native_dropout,
    torch.ops.aten.native_dropout.default,
)


def _is_native(node: Node) -> bool:
    return node.op == "call_function" and node.target in _NATIVE


def _of_native(node: Node, storage: StorageMap | None) -> Node | None:
    """native_dropout returns (a copy, a mask); the copy may go if that cannot be observed."""
    assert storage is not None
    passed = _input(node)
    only_copy = all(
        user.target is operator.getitem and user.args[1] == 0 and not storage.escapes(user)
        for user in node.users
    )
    if passed is None or not only_copy or draws_random(node, "native_dropout"):
        return None
    return None if storage.written(passed) or storage.written(node) else passed


def _input(node: Node) -> Node | None:
    passed = argument(node, 0, "input", node.kwargs.get("self"))
    return passed if isinstance(passed, Node) else None
