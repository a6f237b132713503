"""Graphs of two blocks that are equal, or nearly so."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.node import map_arg
from torch.nn import functional

_SIZE = 6


@dataclass(frozen=True)
class Step:
    """One call of a block; "x" is the value of the step before, other texts are inputs."""

    target: Callable[..., Any] | str
    args: tuple[Any, ...] = ("x",)
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Pair:
    """Two blocks that differ in one thing.

    Attributes:
        first: Steps in the middle of the first block.
        second: The same of the second block.
        before: Calls before both blocks, which make an input of the second block.
        between: Calls between the blocks.
        after: Calls after both.
        replaced: Inputs that the second block takes in place of others.
    """

    first: Sequence[Step] = ()
    second: Sequence[Step] = ()
    before: Sequence[Step] = ()
    between: Sequence[Step] = ()
    after: Sequence[Step] = ()
    replaced: Mapping[str, str] = field(default_factory=dict)


def _step(target: Callable[..., Any] | str, *args: Any, **kwargs: Any) -> Step:
    return Step(target, args, kwargs)


def _steps(one: Step, other: Step) -> Pair:
    return Pair(first=[one], second=[other])


def _input(*before: Step) -> Pair:
    """The second block takes another value for "p"."""
    return Pair(before=before, replaced={"p": "x"})


_dropout = functional.dropout
EQUAL = Pair()
OTHER_ORDER = Pair(replaced={"p": "b", "b": "p"})
"""One function of two tensors, called with them in either order."""
DIFFERENT: Mapping[str, Pair] = {
    "a float": _steps(_step(torch.mul, "x", 2.0), _step(torch.mul, "x", 2.5)),
    "the type of a number": _steps(_step(torch.add, "x", 1), _step(torch.add, "x", 1.0)),
    "a number or a truth value": _steps(_step(torch.mul, "x", 1), _step(torch.mul, "x", True)),
    "the sign of zero": _steps(_step(torch.mul, "x", 0.0), _step(torch.mul, "x", -0.0)),
    "a keyword": _steps(_step(torch.add, "x", "o", alpha=1), _step(torch.add, "x", "o", alpha=2)),
    "a missing keyword": _steps(_step(torch.add, "x", "o"), _step(torch.add, "x", "o", alpha=1)),
    "a dimension": _steps(_step(torch.softmax, "x", 0), _step(torch.softmax, "x", 1)),
    "a slice": _steps(
        _step(operator.getitem, "x", (slice(0, None), slice(None))),
        _step(operator.getitem, "x", (slice(None), slice(None))),
    ),
    "a list or a tuple": _steps(
        _step(torch.permute, "x", [1, 0]), _step(torch.permute, "x", (1, 0))
    ),
    "the operator": _steps(_step(torch.relu, "x"), _step(torch.sigmoid, "x")),
    "a method of the same name": _steps(_step(torch.relu, "x"), _step("relu", "x")),
    "the order of operands": _steps(_step(torch.sub, "x", "o"), _step(torch.sub, "o", "x")),
    "which operand": _steps(_step(torch.mul, "x", "o"), _step(torch.mul, "x", "h")),
    "one operand twice": _steps(_step(torch.mul, "x", "o"), _step(torch.mul, "x", "x")),
    "a tensor of its own": _steps(_step(torch.mul, "x", "p"), _step(torch.mul, "x", "b")),
    "the dtype of a result": Pair(
        [_step("to", "x", torch.float32), _step("float", "x")],
        [_step("to", "x", torch.float64), _step("float", "x")],
    ),
    "the memory format": _steps(
        _step("contiguous", "x"), _step("contiguous", "x", memory_format=torch.preserve_format)
    ),
    "dropout": _steps(_step(_dropout, "x", 0.5, False), _step(_dropout, "x", 0.5, True)),
    "the rate of dropout": _steps(
        _step(_dropout, "x", 0.5, False), _step(_dropout, "x", 0.4, False)
    ),
    "a write to its own memory": _steps(_step(torch.relu, "x"), _step("relu_", "x")),
    "a write to an operand": _steps(_step(torch.add, "b", 1.0), _step("add_", "b", 1.0)),
    "an inplace flag": _steps(
        _step(functional.relu, "x", False), _step(functional.relu, "x", True)
    ),
    "strides of an operand": _input(_step("t", "p"), _step("contiguous", "x"), _step("t", "x")),
    "offset of an operand": _input(
        _step(torch.cat, ("p", "p")), _step(operator.getitem, "x", slice(_SIZE, None))
    ),
    "dtype of an operand": _input(_step("double", "p")),
    "size of an operand": _input(_step(operator.getitem, "p", slice(0, 1))),
    "gradient of an operand": _input(_step("clone", "p"), _step("requires_grad_", "x")),
    "conjugate operand": _input(_step(torch.complex, "p", "p"), _step(torch.conj, "x")),
    "operands that are one": Pair(replaced={"p": "b"}),
    "a symbolic number": _steps(_step(torch.mul, "x", "m"), _step(torch.mul, "x", "n")),
    "a symbol or a number": _steps(_step(torch.mul, "x", "m"), _step(torch.mul, "x", 3)),
}
"""What the second block has that the first has not, or has differently."""

_random = (_step(_dropout, "x", 0.5, True),)
_written = (_step("add_", "b", 1.0),)
UNSUITED: Mapping[str, Pair] = {
    "random numbers": Pair(_random, _random),
    "random noise": _steps(_step(torch.rand_like, "x"), _step(torch.rand_like, "x")),
    "a write to an input": Pair(_written, _written),
    "an input written later": Pair(after=_written),
    "an input written in between": Pair(between=_written),
    "a switch in between": Pair(between=[_step(torch._C._set_grad_enabled, False)]),
    "a switch inside": Pair(*[[_step(torch._C._set_grad_enabled, False)]] * 2),
}
"""Blocks that are equal and must not become calls of one graph."""


@dataclass
class _Builder:
    """Builds a graph call by call, with a fake value for each node."""

    graph: Graph = field(default_factory=Graph)
    mode: FakeTensorMode = field(default_factory=lambda: FakeTensorMode(shape_env=ShapeEnv()))
    values: dict[str, Node] = field(default_factory=dict)

    def given(self, name: str, value: Any) -> None:
        self.values[name] = self.graph.placeholder(name)
        self.values[name].meta["example_value"] = value

    def run(self, steps: Sequence[Step], values: Mapping[str, Node]) -> Node:
        known = dict(values)
        for step in steps:
            made = self.call(step, known)
            known["x"] = known["x"] if made.meta["example_value"] is None else made
        return known["x"]

    def call(self, step: Step, values: Mapping[str, Node]) -> Node:
        def placed(part: Any) -> Any:
            if isinstance(part, tuple | list):
                return type(part)(map(placed, part))
            return values.get(part, part) if isinstance(part, str) else part

        args, kwargs = placed(step.args), dict(step.kwargs)
        method = isinstance(step.target, str)
        node = self.graph.create_node(
            "call_method" if method else "call_function", step.target, args, kwargs
        )
        given = map_arg(args, lambda operand: operand.meta["example_value"])
        grad = torch.is_grad_enabled()
        with self.mode:
            function = getattr(given[0], step.target) if method else step.target
            node.meta["example_value"] = function(*(given[1:] if method else given), **kwargs)
        torch.set_grad_enabled(grad)
        return node


def build(pair: Pair, seed: int) -> GraphModule:
    """A graph of these two blocks; the seed chooses what else they compute."""
    made = _Builder()
    for name in ("h", "o", "p", "b", *(f"{stem}{i}" for i in (1, 2) for stem in "vwz")):
        with made.mode:
            made.given(name, torch.empty(_SIZE, _SIZE))
    for name, number in (("m", 3), ("n", 5)):
        env = made.mode.shape_env
        assert env is not None
        made.given(name, _symbol(env, number))
    value = made.call(_step(torch.exp, "h"), made.values)
    extra = made.run(pair.before, made.values) if pair.before else None
    for number in (1, 2):
        inputs = {**made.values, "h": value, "v": made.values[f"v{number}"]}
        inputs |= {stem: made.values[f"{stem}{number}"] for stem in "wz"}
        if number == 2:
            for step in pair.between:
                made.call(step, made.values)
            known = inputs if extra is None else {**inputs, "x": extra}
            inputs |= {name: known[other] for name, other in pair.replaced.items()}
        middle = pair.first if number == 1 else pair.second
        value = made.run(_block(random.Random(seed), middle), inputs)
    for step in pair.after:
        made.call(step, made.values)
    made.graph.output((made.call(_step(torch.sin, "y"), {"y": value}),))
    return GraphModule({}, made.graph)


def build_two_groups(seed: int) -> GraphModule:
    """A chain of three equal blocks, then three others that are equal and read the first ones."""
    made = _Builder()
    for name in ("h", "o", "p", "b", *(f"{stem}{i}" for i in range(6) for stem in "vwz")):
        with made.mode:
            made.given(name, torch.empty(_SIZE, _SIZE))
    value = made.call(_step(torch.exp, "h"), made.values)
    for number in range(6):
        inputs = {stem: made.values[f"{stem}{number}"] for stem in "vwz"}
        middle = [_step(torch.cos if number < 3 else torch.sin, "x")]
        steps = _block(random.Random(seed + number // 3), middle)
        value = made.run(steps, {**made.values, **inputs, "h": value})
    made.graph.output((value,))
    return GraphModule({}, made.graph)


def _symbol(env: ShapeEnv, number: int) -> torch.SymInt:
    from torch._dynamo.source import ConstantSource

    symbol = env.create_unspecified_symbol(number, ConstantSource(f"number{number}"))
    made = env.create_symintnode(symbol, hint=number)
    assert isinstance(made, torch.SymInt)
    return made


_CHOICES: Sequence[Step] = (
    _step(torch.relu, "x"),
    _step(torch.tanh, "x"),
    _step(torch.mul, "x", 0.5),
    _step(torch.mul, "x", "o"),
    _step(torch.add, "x", "h"),
    _step(torch.add, "x", "x"),
    _step("sigmoid", "x"),
    _step(functional.gelu, "x"),
    _step(functional.layer_norm, "x", (_SIZE,)),
    _step(torch.maximum, "x", "v"),
)


def _block(choose: random.Random, middle: Sequence[Step]) -> list[Step]:
    """The steps of a residual block."""
    steps = [_step(functional.layer_norm, "h", (_SIZE,)), _step(functional.linear, "x", "w")]
    steps += choose.choices(_CHOICES, k=choose.randint(6, 12))
    steps += [_step(torch.mul, "x", "p"), _step(torch.real, "x"), _step("float", "x")]
    place = choose.randint(2, len(steps))
    steps[place:place] = middle
    return [
        *steps,
        _step(torch.matmul, "z", "x"),
        _step(torch.add, "x", "b"),
        _step(torch.add, "x", "h"),
    ]


def real_inputs(module: GraphModule, seed: int) -> list[Any]:
    """Arguments for a call of a graph."""
    generator = torch.Generator().manual_seed(seed)
    values = [node.meta["example_value"] for node in module.graph.find_nodes(op="placeholder")]
    return [
        torch.randn(value.shape, generator=generator)
        if isinstance(value, torch.Tensor)
        else value.node.hint
        for value in values
    ]
