"""Calls of every aten operator with wild sizes and indices, drawn from the operators' schemas."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from operator import getitem
from typing import Any

import torch
from hostile.fitting_calls import CALLS, WILD, Filled, changed
from torch._ops import OpOverload
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_aggregate

_TAME = (0, 0, 0, 1, 1, 1, 2, 2, 3, 4, -1)
_SHAPES = ((), (1,), (2,), (4,), (2, 3), (1, 4), (1, 2, 4), (1, 2, 4, 4), (1, 1, 2, 4, 4), (0,))
_DTYPES = (torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.bfloat16)
_TEXTS = ("none", "mean", "sum", "max", "floor", "trunc", "linear", "reflect", "left")


def operators() -> list[OpOverload]:
    """Those that graphs may call and that take or make tensors, without `out`."""
    found = []
    text = files("lazyfx_server.security.allowed").joinpath("targets.json").read_text()
    allowed = frozenset(json.loads(text)["operators"])
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        packet = getattr(torch.ops.aten, name, None) if space == "aten" else None
        operator = getattr(packet, schema.overload_name or "default", None)
        if not isinstance(operator, OpOverload) or any(a.is_out for a in schema.arguments):
            continue
        if f"{operator.name()}" in allowed or f"aten::{name}.{operator._overloadname}" in allowed:
            found.append(operator)
    return sorted(set(found), key=str)


class Drawer:
    """Draws calls, the same for the same seed."""

    def __init__(self, seed: object) -> None:
        self._random = random.Random(str(seed))
        self._shape: tuple[int, ...] = ()

    def call(self, graph: Graph, operator: OpOverload, *, wild: bool) -> Node:
        """Adds a call on constants, and an operator behind its result.

        Raises:
            LookupError: An argument is of a kind that is not drawn.
        """
        # Most kernels compare the shapes of their operands first: some calls come that far.
        self._shape = self._random.choice(_SHAPES)
        arguments = operator._schema.arguments
        fitting = CALLS.get(str(operator).removeprefix("aten."))
        if fitting is None:
            values = [self._value(graph, argument, wild) for argument in arguments]
        else:
            drawn = (
                changed(fitting, self._random) if wild or self._random.random() < 0.5 else fitting
            )
            values = map_aggregate(drawn, lambda v: v.node(graph) if isinstance(v, Filled) else v)
        args, kwargs = [], {}
        for argument, value in zip(arguments, values, strict=False):
            if argument.kwarg_only:
                kwargs[argument.name] = value
            else:
                args.append(value)
        call = graph.call_function(operator, tuple(args), kwargs)
        results = operator._schema.returns
        if len(results) > 1:
            call = graph.call_function(getitem, (call, self._random.randrange(len(results))))
        elif results and str(results[0].type) == "List[Tensor]":
            call = graph.call_function(getitem, (call, 0))
        return graph.call_function(torch.ops.aten.add.Scalar, (call, 1))

    def _value(self, graph: Graph, argument: Any, wild: bool) -> Any:
        kind, draw = str(argument.real_type), self._random
        if kind.startswith("Optional["):
            if draw.random() < 0.5:
                return None
            kind = kind[len("Optional[") : -1]
        elif argument.has_default_value() and draw.random() < 0.4 and not _is_tensor(kind):
            return argument.default_value
        if kind == "Tensor":
            return self._tensor(graph, wild)
        if kind in ("List[Tensor]", "List[Optional[Tensor]]"):
            return [self._tensor(graph, wild) for _ in range(draw.randrange(1, 4))]
        if kind == "List[int]":
            count = argument.N or draw.randrange(0, 4)
            return [self._integer(wild) for _ in range(count)]
        if kind == "List[bool]":
            return [draw.random() < 0.5 for _ in range(argument.N or 2)]
        if kind == "List[float]":
            return [draw.choice((0.5, 2.0, 1e-9, -1.0)) for _ in range(2)]
        return self._scalar(kind, argument, wild)

    def _scalar(self, kind: str, argument: Any, wild: bool) -> Any:
        draw = self._random
        choices: dict[str, Any] = {
            "ScalarType": lambda: draw.choice(_DTYPES),
            "Layout": lambda: draw.choice((torch.strided, torch.strided, torch.sparse_coo)),
            "MemoryFormat": lambda: draw.choice((torch.contiguous_format, torch.preserve_format)),
            "int": lambda: self._integer(wild),
            "number": lambda: draw.choice((1, -1, 0.5, -(2**63) if wild else 2)),
            "float": lambda: draw.choice((0.5, 0.0, 1e-9, -1.0, 1e30)),
            "bool": lambda: draw.random() < 0.5,
            "str": lambda: draw.choice(_TEXTS),
            "Device": lambda: torch.device("cpu"),
        }
        return choices[kind]()

    def _integer(self, wild: bool) -> int:
        return self._random.choice(WILD if wild and self._random.random() < 0.7 else _TAME)

    def _tensor(self, graph: Graph, wild: bool) -> Node:
        draw = self._random
        shape = list(self._shape if draw.random() < 0.7 else draw.choice(_SHAPES))
        if shape and draw.random() < 0.1:
            shape[draw.randrange(len(shape))] += 1
        made = self._filled(graph, shape, wild)
        if len(shape) > 1 and draw.random() < 0.1:
            return graph.call_function(torch.ops.aten.transpose.int, (made, 0, 1))
        if draw.random() < 0.05:
            # Elements that share one place.
            return graph.call_function(torch.ops.aten.expand.default, (made, [2, *shape]))
        return made

    def _filled(self, graph: Graph, shape: list[int], wild: bool) -> Node:
        draw = self._random
        full = torch.ops.aten.full.default
        if draw.random() < 0.35:
            value = self._integer(wild)
            dtype = draw.choice((torch.int64, torch.int64, torch.int32, torch.bool))
            return graph.call_function(full, (shape, value), {"dtype": dtype})
        if draw.random() < 0.1:
            # One element that torch takes for a constant.
            made = graph.call_function(torch.tensor, (self._integer(wild),))
            return graph.call_function(torch.ops.aten._to_copy.default, (made,))
        return graph.call_function(full, (shape, draw.choice((1.0, 0.5, -2.0))), {})


@dataclass(frozen=True)
class Draw:
    """A call of an operator, the same in every graph. Every other one is wild."""

    operator: OpOverload
    seed: int
    number: int


def graph_of(draws: Iterable[Draw]) -> GraphModule:
    """An input, and drawn calls with operators behind them.

    Raises:
        LookupError: An argument is of a kind that is not drawn.
    """
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, device="meta")
    results = [x]
    for draw in draws:
        drawer = Drawer((draw.seed, draw.operator, draw.number))
        behind = drawer.call(graph, draw.operator, wild=draw.number % 2 == 0)
        results += (behind, graph.call_function(torch.ops.aten.add.Scalar, (behind, 1)))
    graph.output(tuple(results))
    return GraphModule(torch.nn.Module(), graph)


def _is_tensor(kind: str) -> bool:
    return "Tensor" in kind
