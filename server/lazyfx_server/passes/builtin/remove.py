"""Passes that take nodes away: dead code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.effects import effects_of
from lazyfx_server.passes.walk import graph_modules


@dataclass(frozen=True)
class DeadCodeElimination(Pass):
    """Removes nodes whose result nobody uses and that do nothing else.

    Keeps what changes its operands or the world: in-place methods, functions and
    operators, `out=`, running statistics of normalizations in training, random
    draws, assertions, context switches, collectives, and every callable that is
    not known to be pure. Also cleans the GraphModules inside.
    """

    name: ClassVar[str] = "dead_code_elimination"

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002
        """Removes dead nodes; the inputs and their order stay."""
        removed = 0
        # Innermost first: what makes a body pure may make its caller dead.
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
