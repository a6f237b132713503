"""Two passes of a third party."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import ClassVar

from torch.fx import GraphModule

from lazyfx_server.passes import Pass, PassContext, PassResult


@dataclass(frozen=True)
class SampleDouble(Pass):
    """Writes `x * factor` as a sum, for small whole factors."""

    name: ClassVar[str] = "sample_double"

    factor: int = field(default=2, metadata={"help": "The factor to look for."})

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Replaces in place."""
        found = 0
        for node in list(module.graph.nodes):
            if node.target is operator.mul and node.args[1] == self.factor == 2:
                node.target, node.args = operator.add, (node.args[0], node.args[0])
                found += 1
        if found:
            module.recompile()
        return PassResult(module, found > 0, f"{found} products")


@dataclass(frozen=True)
class SampleReading(Pass):
    """Reads the code, which forces a recompile: the report names it."""

    name: ClassVar[str] = "sample_reading"
    mutates: ClassVar[bool] = False

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Counts the lines."""
        return PassResult(module, False, f"{len(module.code.splitlines())} lines")


PASSES = (SampleDouble, SampleReading)
