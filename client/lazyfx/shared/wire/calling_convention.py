"""Refuses modules whose call does more than run the nodes of their graph.

A digest covers nodes. Hooks, a custom forward, or a code generator that rewrites the source change
what a call computes without changing a node, so two different computations would have the same
digest.
"""

# ruff: noqa: SLF001 - hooks and code generators have no public reader

from __future__ import annotations

import torch
from torch.fx import GraphModule
from torch.fx.graph import CodeGen, _PyTreeCodeGen

from lazyfx.errors import UnsupportedGraphError

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_root(module: GraphModule) -> None:
    """Refuse a root whose calling convention cannot be restored.

    Pytrees (`_PyTreeCodeGen`) stay with the client, which restores them around the compiled graph.
    So do hooks of the root: they run around a graph, not in it.

    Raises:
        UnsupportedGraphError: It has a custom code generator.
    """
    codegen = module.graph._codegen
    _check_codegen(module, "the graph", allowed=isinstance(codegen, _PyTreeCodeGen))


def check_child(module: GraphModule, path: str) -> None:
    """Refuse a nested graph whose call does not just run its nodes.

    Raises:
        UnsupportedGraphError: It takes pytrees, or has hooks, a custom forward or a custom code
            generator.
    """
    if isinstance(module.graph._codegen, _PyTreeCodeGen):
        raise UnsupportedGraphError(
            f"the nested graph {path!r} takes nested Python structures",
            remedy="flatten its inputs and outputs, or inline it",
        )
    _check_codegen(module, f"the nested graph {path!r}", allowed=False)
    if has_own_call(module):
        raise UnsupportedGraphError(
            f"the nested graph {path!r} has hooks or a custom forward",
            remedy="remove the hooks before tracing",
        )


def has_hooks(module: torch.nn.Module) -> bool:
    """Whether a call of this module, or its backward pass, runs hooks."""
    return any(getattr(module, hooks, None) for hooks in HOOKS)


def has_own_call(module: torch.nn.Module) -> bool:
    """Whether calling this module runs hooks, or instance methods that override its class's."""
    if has_hooks(module):
        return True
    cls = type(module)
    return any(callable(value) and callable(getattr(cls, name, None))
               for name, value in vars(module).items())  # fmt: skip


def _check_codegen(module: GraphModule, label: str, *, allowed: bool) -> None:
    codegen = module.graph._codegen
    if not (allowed or type(codegen) is CodeGen) or codegen._body_transformer is not None:
        raise UnsupportedGraphError(
            f"{label} has a custom code generator ({type(codegen).__name__})",
            remedy="compile a graph with the default calling convention: "
            "graph.set_codegen(torch.fx.graph.CodeGen())",
        )
