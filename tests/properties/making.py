"""Random graphs, decided by a string of bytes, and edits of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from material import FUNCTIONS, KEYWORDS, LITERALS, METHODS, MODULES, TENSORS, Material
from torch.fx import Graph, GraphModule, Node

Item = TypeVar("Item")

# Code is of no interest here, and not all of these graphs have any.
LazyModule = torch.fx._lazy_graph_module._LazyGraphModule


class Choices:
    """Decisions read off bytes; when they run out, the first of everything is chosen."""

    def __init__(self, data: bytes) -> None:
        self._data = iter(data)

    def number(self, below: int) -> int:
        return next(self._data, 0) % below

    def of(self, items: Sequence[Item]) -> Item:
        return items[self.number(len(items))]


class Maker:
    """Makes one graph: the same one, in the words of `material`, from the same choices."""

    def __init__(self, choices: Choices, material: Material, depth: int = 0) -> None:
        self._choices = choices
        self._material = material
        self._depth = depth
        self._graph = Graph()
        self._nodes: list[Node] = []
        self._attributes: dict[str, Any] = {}
        # Whether the call that is made takes text for a device.
        self._spells = False

    def make(self) -> GraphModule:
        choices = self._choices
        for i in range(1 + choices.number(3)):
            self._placeholder(i)
        for _ in range(choices.number(6)):
            self._call()
        self._graph.output(self._argument(2, True))
        module = LazyModule(torch.nn.Module(), Graph())
        for name, value in self._attributes.items():
            setattr(module, name, value)
        module.graph = self._graph
        if self._material.suffix:
            for number, node in enumerate(self._graph.nodes):
                node.meta["stack_trace"] = f"line {number}"
                node.meta["nn_module_stack"] = {"other": number}
                node.type = torch.Tensor
        return module

    def _placeholder(self, number: int) -> None:
        name = f"x{number}{self._material.suffix}"
        stars = ("", "", "", "", "", "", "*", "**")[self._choices.number(8)]
        default = self._choices.number(5)
        args = (self._literal(0, False),) if default == 1 and not stars else ()
        node = self._graph.create_node("placeholder", stars + name, args, name=name)
        self._keep(node)

    def _keep(self, node: Node) -> None:
        if self._choices.number(3):
            node.meta["val"] = self._choices.of(self._material.values)
        self._nodes.append(node)

    def _call(self) -> None:
        kind = self._choices.number(8)
        if kind == 0:
            place = self._choices.number(len(TENSORS))
            self._keep(self._graph.get_attr(self._own(f"tensor{place}", TENSORS[place][1])))
            return
        if kind == 1:
            place = self._choices.number(len(MODULES))
            target: Any = self._own(f"module{place}", MODULES[place][1])
            op = "call_module"
        elif kind == 2 and not self._depth:
            child = Maker(self._choices, self._material, 1).make()
            target, op = self._own(f"child{len(self._attributes)}", child), "call_module"
        elif kind == 3:
            target, op = self._choices.of(METHODS), "call_method"
        else:
            target, op = self._choices.of(FUNCTIONS), "call_function"
        seen = op != "call_function" or not _looks_up(target)
        self._spells = op == "call_method" or not seen
        first = self._choices.of(self._nodes)
        args = [self._argument(2, seen) for _ in range(self._choices.number(4))]
        names = sorted({self._choices.of(KEYWORDS) for _ in range(self._choices.number(3))})
        kwargs = {name: self._argument(1, seen) for name in names}
        if self._material.turns and target is not dict and target != "update":
            kwargs = dict(reversed(kwargs.items()))
        self._spells = False
        name = f"node{len(self._nodes)}{self._material.suffix}"
        self._keep(self._graph.create_node(op, target, (first, *args), kwargs, name=name))

    def _own(self, name: str, value: Any) -> str:
        path = name + self._material.suffix
        self._attributes[path] = value
        return path

    def _argument(self, depth: int, seen: bool) -> Any:
        """A node, a literal or a container; `seen` says whether the order of keys counts."""
        kind = self._choices.number(9 if depth else 7)
        if kind < 3:
            return self._choices.of(self._nodes)
        if kind < 6:
            return self._literal(depth, seen)
        if kind == 6:
            return self._choices.of(self._material.numbers)[0]
        if kind == 7:
            items = [self._argument(depth - 1, seen) for _ in range(self._choices.number(3))]
            return items if self._choices.number(2) else tuple(items)
        count = self._choices.number(3)
        keys = [self._choices.of(["k", "b", "a", 1, 2, False]) for _ in range(count)]
        entries = [(key, self._argument(depth - 1, seen)) for key in dict.fromkeys(keys)]
        return dict(reversed(entries) if self._material.turns and not seen else entries)

    def _literal(self, depth: int, seen: bool) -> Any:
        kind = self._choices.number(6)
        if kind == 1:
            return self._choices.of(self._material.devices)
        if kind == 2 and self._spells:
            return self._choices.of(self._material.spelled)
        return self._choices.of(LITERALS)


def _looks_up(target: Any) -> bool:
    """Whether a function finds entries of a dictionary by key only: torch's own do."""
    if isinstance(target, torch._ops.HigherOrderOperator):
        return False
    return getattr(target, "__module__", "").startswith("torch") or isinstance(
        target, (torch._ops.OpOverload, torch._ops.OpOverloadPacket)
    ) or target in (torch.add, torch.relu, torch.cat)  # fmt: skip


def make(data: bytes, material: Material) -> GraphModule:
    """The graph that some bytes decide on."""
    return Maker(Choices(data), material).make()


def edit(module: GraphModule, choices: Choices, material: Material) -> None:
    """Change one thing somewhere; now and then the change is none."""
    nodes = list(module.graph.nodes)
    node = choices.of(nodes)
    earlier = nodes[: nodes.index(node)]
    what = choices.number(6)
    if what == 0 and node.op in ("call_function", "call_method"):
        pool = FUNCTIONS if node.op == "call_function" else METHODS
        node.target = choices.of(pool)
    elif what == 1 and node.op != "output":
        if choices.number(4):
            node.meta["val"] = choices.of(material.values)
        else:
            node.meta.pop("val", None)
    elif what == 2 and node.op.startswith("call"):
        name = choices.of(KEYWORDS)
        node.kwargs = dict(sorted({**node.kwargs, name: choices.of(LITERALS)}.items()))
    elif what == 3 and node.op in ("get_attr", "call_module"):
        _swap(module, node, choices)
    elif node.args and earlier:
        _change_argument(node, earlier, choices, material)


def _swap(module: GraphModule, node: Node, choices: Choices) -> None:
    """Another tensor or module in the place of one."""
    pool = TENSORS if node.op == "get_attr" else MODULES
    present = getattr(module, str(node.target))
    if not isinstance(present, GraphModule):
        delattr(module, str(node.target))
        setattr(module, str(node.target), choices.of(pool)[1])


def _change_argument(node: Node, earlier: list[Node], choices: Choices, material: Material) -> None:
    args = list(node.args)
    place = choices.number(len(args))
    how = choices.number(6)
    if how == 0:
        args[place] = choices.of(earlier)
    elif how == 1:
        args[place] = choices.of(LITERALS)
    elif how == 2:
        args[place] = [args[place]]
    elif how == 3:
        args[place] = (args[place],)
    elif how == 4:
        args[place] = choices.of(material.numbers)[0]
    elif node.op not in ("output", "placeholder"):
        args.append(choices.of(material.devices))
    if node.op == "placeholder" and any(isinstance(a, Node) for a in args):
        return
    node.args = tuple(args)
