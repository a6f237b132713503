"""Pickles graphs and their modules as calls that recreate them."""

# ruff: noqa: SLF001 - graphs and modules keep what they are in private attributes

from __future__ import annotations

import ast
import operator
from collections import OrderedDict
from collections.abc import Mapping
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.pickling import torch_rebuild
from lazyfx.shared.formats.pickling.callables import CallableReducer
from lazyfx.shared.formats.pickling.deferred_calls import DeferredCall, after_calls, by_dotted_name

# Attributes of a GraphModule in addition to its graph and state. The constructor sets them, so
# writing them would only add things that may not pickle.
_MADE_AGAIN = frozenset(
    (
        "_code",
        "_create_node_hooks",
        "_deepcopy_hooks",
        "_erase_node_hooks",
        "_graph",
        "_in_spec",
        "_lineno_map",
        "_out_spec",
        "_prologue_start",
        "_replace_hooks",
        "_tracer_cls",
        "_tracer_extras",
        "meta",
        "shape_env",
    )
)

# Objects that define how to find them. Packages cannot find all of these by themselves.
_NAMED_BY_TORCH = (torch.dtype, torch.layout, torch.memory_format)


class ModuleReducer:
    """Pickles modules, each once, with their own tensors and leaf modules."""

    def __init__(self) -> None:
        self._known: dict[int, object] = {}
        self._callables = CallableReducer()

    def reduce(self, module: nn.Module) -> object:
        """What represents a module in a pickle; the module itself if it contains no graph."""
        if id(module) not in self._known:
            self._known[id(module)] = self._reduce(module)
        return self._known[id(module)]

    def _reduce(self, module: nn.Module) -> object:
        if not any(isinstance(part, GraphModule) for part in module.modules()):
            return module
        # torch.export adds methods to module instances, bound to the module itself.
        state = {
            name: value
            for name, value in vars(module).items()
            if name not in _MADE_AGAIN and not isinstance(value, MethodType)
        }
        state["_modules"] = {
            name: None if child is None else self.reduce(child)
            for name, child in module._modules.items()
        }
        if not isinstance(module, GraphModule):
            copied = type(module).__new__(type(module))
            copied.__dict__ = state
            return copied
        # torch drops hooks on loading anyway, and most would not pickle.
        state.update({name: OrderedDict() for name in state if "_hooks" in name})
        root = nn.Module()
        root.__dict__ = state
        # GraphModule copies what its nodes read, tensors as buffers; the state contains all of it.
        graph, class_name = self._graph(module.graph), type(module).__name__
        # By name: a package would mistake the class for a module that pickles itself.
        return DeferredCall(
            by_dotted_name("torch.fx.GraphModule"), (root, graph, class_name), state
        )

    def _graph(self, graph: Graph) -> DeferredCall:
        made = DeferredCall(Graph, ())
        create = DeferredCall(getattr, (made, "create_node"))
        nodes: dict[Node, DeferredCall] = {}
        for node in graph.nodes:
            nodes[node] = self._node(node, create, nodes)
        steps: list[object] = [list(nodes.values())]
        try:
            info = torch_rebuild.pytree_info_of(graph._codegen)
        except TypeError as error:
            raise UnsupportedGraphError(
                f"{error} cannot be saved",
                remedy="set that of torch.fx: graph.set_codegen(torch.fx.graph.CodeGen())",
            ) from None
        if info is not None:
            convention = DeferredCall(torch_rebuild._PyTreeInfo, tuple(info))
            codegen = DeferredCall(torch_rebuild._PyTreeCodeGen, (convention,))
            steps.append(DeferredCall(DeferredCall(getattr, (made, "set_codegen")), (codegen,)))
        return after_calls(made, *steps)

    def _node(
        self, node: Node, create: DeferredCall, nodes: Mapping[Node, DeferredCall]
    ) -> DeferredCall:
        argument = partial(self._argument, create=create, nodes=nodes)
        arguments = argument(node.args), argument(node.kwargs)
        target: Any = node.target
        if target is operator.pow and repr(node.args[0]).lstrip("(").startswith("-"):
            # torch.fx writes -2 ** x, which means -(2 ** x). Literals in parentheses lose them.
            target = by_dotted_name("builtins.pow")
        elif not isinstance(target, str):
            target = self._callables.reduce(target)
        call: tuple[Any, ...] = (node.op, target, *arguments, node.name)
        return DeferredCall(create, call if node.type is None else (*call, node.type))

    def _argument(
        self, argument: Any, create: DeferredCall, nodes: Mapping[Node, DeferredCall]
    ) -> Any:
        if isinstance(argument, Node):
            return nodes[argument]
        within = partial(self._argument, create=create, nodes=nodes)
        if type(argument) is tuple:
            return tuple(map(within, argument))
        if isinstance(argument, list):
            return list(map(within, argument))
        if isinstance(argument, dict):
            return {key: within(part) for key, part in argument.items()}
        if isinstance(argument, slice):
            return DeferredCall(
                slice, tuple(map(within, (argument.start, argument.stop, argument.step)))
            )
        if isinstance(argument, tuple) and any(isinstance(part, Node) for part in argument):
            parts = tuple(map(within, argument))
            return DeferredCall(type(argument), parts if hasattr(argument, "_fields") else (parts,))
        if isinstance(argument, complex) and not _is_read_back(argument):
            parts = (argument.real, argument.imag)
            return DeferredCall(
                create, ("call_function", by_dotted_name("builtins.complex"), parts)
            )
        if argument is ...:
            return by_dotted_name("builtins.Ellipsis")
        if isinstance(argument, _NAMED_BY_TORCH):
            return by_dotted_name(str(argument))
        if callable(argument) and not isinstance(argument, type):
            return self._callables.reduce(argument)
        return argument


def _is_read_back(number: complex) -> bool:
    """Whether torch.fx's text evaluates to this number: for -1j, the real part differs."""
    try:
        read = ast.literal_eval(complex.__repr__(number))
    except ValueError:  # infinite or NaN parts
        return False
    return (repr(read.real), repr(read.imag)) == (repr(number.real), repr(number.imag))
