"""Passes that rewrite a graph into aten operators: functionalize, decompose."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch._ops import OpOverload
from torch.fx import GraphModule

from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.functionalizing.retracing import CannotRetrace, Retraced, retrace
from lazyfx_server.passes.analysis.operator_facts import is_tagged_random
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.errors import PassError

Table = Mapping[OpOverload[..., Any], Callable[..., Any]]


@dataclass(frozen=True)
class Functionalize(Pass):
    """Rewrites the graph in aten operators without side effects.

    In-place calls become calls that return a new value; writes to inputs and buffers become `copy_`
    calls at the end of the graph, or before the first call that uses another tensor which may be in
    the same memory: inputs may share memory with each other and with attributes. Torch functions
    and modules become aten operators. Graphs that switch grad mode, contain nested graphs or have
    symbolic sizes are left unchanged, and so are graphs whose result would no longer be
    differentiable.
    """

    name: ClassVar[str] = "functionalize"
    version: ClassVar[int] = 6
    needs_shapes: ClassVar[bool] = True

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Gives the module another graph."""
        return _retraced(module, {})


@dataclass(frozen=True)
class Decompose(Pass):
    """Decomposes the graph into core aten operators, with torch.export's decomposition table.

    Random operators are not decomposed, to keep the same draws, nor is `detach`, to keep the same
    gradients. With `operators`, only those are decomposed, by name ("aten.gelu" or
    "aten.gelu.default"). The graph is also functionalized; graphs that functionalize leaves
    unchanged are left unchanged here too.
    """

    name: ClassVar[str] = "decompose"
    version: ClassVar[int] = 6
    needs_shapes: ClassVar[bool] = True

    operators: tuple[str, ...] = field(
        default=(), metadata={"help": "Operators to decompose; the whole table if empty."}
    )

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Gives the module another graph.

        Raises:
            PassError: An operator of `operators` is not in the table.
        """
        return _retraced(module, _table(self.operators))


def _retraced(module: GraphModule, table: Table) -> PassResult:
    before, graph = _text(module), module.graph
    try:
        found: Retraced = in_fresh_thread(lambda: retrace(module, table))
    except CannotRetrace as reason:
        return PassResult(module, False, f"skipped: {reason}")
    found.put_into(module)
    changed = _text(module) != before
    if changed:
        module.recompile()
    else:  # keep the captured metadata of the values
        module._graph = graph  # noqa: SLF001 - the setter would ask for a recompile
    return PassResult(module, changed)


def _text(module: GraphModule) -> list[str]:
    return [f"{n.op} {n.target} {n.args} {n.kwargs}" for n in module.graph.nodes]


def _table(names: tuple[str, ...]) -> Table:
    known = torch.export.default_decompositions()
    table = {op: rule for op, rule in known.items() if not is_tagged_random(op)}
    # Its decomposition does not stop gradients.
    table.pop(torch.ops.aten.detach.default, None)
    # Its decomposition has the strides of one call, in whose order random numbers are drawn.
    table.pop(torch.ops.aten.empty_like.default, None)
    if not names:
        return table
    chosen = {}
    for name in names:
        whole = name if name.count(".") > 1 else f"{name}."
        found = {
            op: rule for op, rule in table.items() if f"{op}.".startswith(f"{whole.rstrip('.')}.")
        }
        if not found:
            raise PassError(
                f"{name!r} is not in the decomposition table", field="options.operators"
            )
        chosen.update(found)
    return chosen
