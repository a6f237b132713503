"""Passes that tests of the driver run."""

from dataclasses import dataclass
from time import perf_counter
from typing import ClassVar

import torch
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from lazyfx_server.passes import Pass, PassContext, PassError, PassResult


@dataclass(frozen=True)
class Recompiling(Pass):
    """Requests recompiles, and calls the module if `call` is set."""

    name: ClassVar[str] = "recompiling"

    times: int = 1
    call: bool = False

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        for _ in range(self.times):
            module.recompile()
        if self.call:
            module(torch.ones(2))
            module(torch.ones(2))
        return PassResult(module, False, "asked")


@dataclass(frozen=True)
class Plain(Pass):
    """Gives back a module that torch built, as third-party passes do."""

    name: ClassVar[str] = "plain"

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        result = CSEPass()(module)
        return PassResult(result.graph_module, result.modified)


@dataclass(frozen=True)
class Failing(Pass):
    """Fails at a node."""

    name: ClassVar[str] = "failing"

    own: bool = False

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        for node in module.graph.nodes:
            if node.op == "call_function":
                if self.own:
                    raise PassError("cannot", field="options.own", node=node.name)
                raise KeyError("missing")
        return PassResult(module, False)


def traced() -> GraphModule:
    return symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))


@dataclass(frozen=True)
class Shrinking(Pass):
    """Removes one node of a chain each time, slowly if `seconds` is set."""

    name: ClassVar[str] = "shrinking"

    forever: bool = False
    seconds: float = 0.0

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        start = perf_counter()
        for node in module.graph.nodes:
            while perf_counter() - start < self.seconds:
                pass
            if node.op == "call_function":
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
                module.recompile()
                return PassResult(module, True, "one less")
        return PassResult(module, self.forever)


def chain(length: int) -> GraphModule:
    def f(x):  # type: ignore[no-untyped-def]
        for i in range(length):
            x = x + i
        return x

    return symbolic_trace(f)
