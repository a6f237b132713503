"""Assumptions of a compile about symbolic sizes: collected on the server, enforced on the client.

Symbols have no names that both sides share. Symbols of sizes are identified by the order in which
they first appear alone in the graph's inputs, which is the same on both sides; symbols of floats by
the input, a zero-dimensional tensor, that holds the float.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.errors import ArtifactError, DecodeError, UnsupportedGraphError
from lazyfx.shared.native.guard_expressions import expressions_from, expressions_to
from lazyfx.shared.native.torch_inductor import SymT, symbol_is_type
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# A float that changes with every call would fill the cache of evaluated conditions.
_MAX_KNOWN = 1_000


def input_symbols(inputs: Iterable[Any]) -> list[sympy.Symbol]:
    """The symbols that appear alone in inputs, in order of first appearance.

    Args:
        inputs: Fake tensors, numbers symbolic or not.
    """
    found: dict[sympy.Symbol, None] = {}
    for value in inputs:
        for number in _numbers(value):
            if isinstance(number, torch.SymInt) and isinstance(number.node.expr, sympy.Symbol):
                found.setdefault(number.node.expr)
    return list(found)


def float_symbols(inputs: Iterable[Any]) -> dict[int, sympy.Symbol]:
    """The symbols of floats, by the position of the input that holds each.

    Args:
        inputs: Fake tensors, numbers symbolic or not.
    """
    found = {}
    for number, value in enumerate(inputs):
        item = _item(value) if isinstance(value, FakeTensor) else None
        symbol = item.node.expr if isinstance(item, torch.SymFloat) else None
        if isinstance(symbol, sympy.Symbol) and symbol_is_type(symbol, SymT.FLOAT):
            found[number] = symbol
    return found


def shape_env(inputs: Iterable[Any]) -> ShapeEnv | None:
    """The ShapeEnv of the symbols of inputs; None if all are static."""
    for value in inputs:
        for number in _numbers(value):
            if isinstance(number, (torch.SymInt, torch.SymFloat)):
                env: ShapeEnv = number.node.shape_env
                return env
    return None


def guards_of(env: ShapeEnv, symbols: Sequence[sympy.Symbol], known: int) -> pb.ShapeGuards:
    """The guards of an environment as a message.

    Args:
        env: The ShapeEnv in which the graph was compiled.
        symbols: `input_symbols` of the graph's inputs, followed by those of floats whose inputs the
            receiver is told.
        known: Guards that existed before the compile.

    Raises:
        UnsupportedGraphError: A guard contains a symbol that appears alone in no input.
    """
    conditions = [guard.expr for guard in env.guards[known:] if guard.expr is not sympy.true]
    body, rows = expressions_to(conditions, symbols, env)
    if len(body.symbols) > len(symbols):
        raise UnsupportedGraphError(
            "the compile depends on a size that no input determines",
            remedy="mark fewer dimensions as dynamic",
        )
    return pb.ShapeGuards(symbols=body.symbols, expressions=body.expressions, conditions=rows)


def read_guards(guards: pb.ShapeGuards, symbols: Sequence[sympy.Symbol]) -> list[sympy.Basic]:
    """Read the conditions of a message, over one's own symbols.

    Raises:
        ArtifactError: The message does not fit the graph.
    """
    if len(guards.symbols) > len(symbols):
        raise ArtifactError("the artifact's shape guards refer to more sizes than the graph has")
    body = graph_pb2.GraphBody(symbols=guards.symbols, expressions=guards.expressions)
    try:
        return expressions_from(body, guards.conditions, symbols)
    except DecodeError as error:
        raise ArtifactError(f"the artifact's shape guards are malformed: {error}") from error


def enforce(conditions: Iterable[sympy.Basic], env: ShapeEnv) -> None:
    """Add conditions as guards to the frame that dynamo is compiling.

    A call whose sizes violate one is recompiled.

    Raises:
        ArtifactError: The sizes of this call violate a condition.
    """
    for condition in conditions:
        if not env.evaluate_expr(condition):
            raise ArtifactError(f"the artifact is for other sizes: {condition} does not hold")


class Conditions:
    """Conditions on symbolic sizes, evaluated for the inputs of each call.

    Args:
        conditions: From `read_guards`.
        described: The description of each input, including symbolic sizes.
    """

    def __init__(self, conditions: Sequence[sympy.Basic], described: Sequence[Any]) -> None:
        self._conditions = conditions
        self._places: dict[sympy.Symbol, tuple[int, int]] = {}
        for i, value in enumerate(described):
            for j, number in enumerate(_numbers(value)):
                if isinstance(number, (torch.SymInt, torch.SymFloat)) and isinstance(
                    number.node.expr, sympy.Symbol
                ):
                    self._places.setdefault(number.node.expr, (i, j))
        self._known: dict[tuple[int | float, ...], bool] = {}

    def hold(self, inputs: Sequence[Any]) -> bool:
        """Whether all conditions hold for these inputs."""
        numbers = tuple(
            next(itertools.islice(_numbers(inputs[i]), j, None)) for i, j in self._places.values()
        )
        known = self._known.get(numbers)
        if known is None:
            values = dict(zip(self._places, map(sympy.sympify, numbers), strict=True))
            known = all(c.xreplace(values) is sympy.true for c in self._conditions)
            if len(self._known) >= _MAX_KNOWN:
                self._known.clear()
            self._known[numbers] = known
        return known


def _numbers(value: Any) -> Iterable[Any]:
    if isinstance(value, torch.Tensor):
        yield from value.shape
        yield from value.stride()
        yield value.storage_offset()
        if not value.ndim and value.dtype is torch.float64:
            yield _item(value) if isinstance(value, FakeTensor) else value.item()
    else:
        yield value


def _item(tensor: FakeTensor) -> Any:
    """The known result of `item()` of a fake tensor; None if unknown."""
    return tensor.item_memo
