"""Rows of symbolic expressions -> numbers of a torch ShapeEnv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils._sympy.numbers import int_oo
from torch.utils._sympy.value_ranges import ValueRanges

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.values.symbolic import CONSTRUCTORS
from lazyfx.v1 import graph_pb2 as pb

# Represents a size without an example value in the capture.
UNKNOWN_EXAMPLE = 16


def _source(name: str) -> Any:
    """The source of a symbol. Without dynamo's classes, which take seconds to import."""
    from torch._dynamo.source import ConstantSource

    return ConstantSource(name)


def create(rows: Sequence[pb.Symbol], env: ShapeEnv) -> list[sympy.Symbol]:
    """Create one symbol of `env` per row, with its range and example value."""
    return [_create(row, number, env) for number, row in enumerate(rows)]


def _create(row: pb.Symbol, number: int, env: ShapeEnv) -> sympy.Symbol:
    if row.kind == pb.SYMBOL_KIND_UNBACKED:
        symbol = env.create_unbacked_symint().node.expr
    elif row.kind == pb.SYMBOL_KIND_UNBACKED_FLOAT:
        return env.create_unbacked_symfloat().node.expr
    else:
        example: int | float = row.hint if row.HasField("hint") else UNKNOWN_EXAMPLE
        if row.kind == pb.SYMBOL_KIND_FLOAT:
            example = row.float_hint
        symbol = env.create_symbol(
            example,
            source=_source(f"lazyfx_{len(env.var_to_range)}_{number}"),
            dynamic_dim=DimDynamic.DYNAMIC,
            positive=True if row.minimum > 0 and example > 1 else None,
            do_not_specialize_zero_one=True,
        )
        if row.kind == pb.SYMBOL_KIND_FLOAT:
            return symbol
    lower = sympy.Integer(row.minimum) if row.HasField("minimum") else -int_oo
    upper = sympy.Integer(row.maximum) if row.HasField("maximum") else int_oo
    env.var_to_range[symbol] = ValueRanges(lower, upper)
    return symbol


def constant(value: torch.SymInt | torch.SymFloat | torch.SymBool) -> int | float | bool | None:
    """The constant value of a symbolic number whose symbols are all known; None for any other."""
    expr = getattr(value.node, "expr", None)
    if expr is None or expr.free_symbols:
        return None
    if isinstance(value, torch.SymInt):
        return int(expr)
    return float(expr) if isinstance(value, torch.SymFloat) else bool(expr)


def sympy_expression(
    body: pb.GraphBody, index: int, symbols: Sequence[sympy.Symbol]
) -> sympy.Basic:
    """The sympy expression of a row of `body.expressions`."""
    row = body.expressions[index]
    operator = row.operator
    if operator == pb.SYMBOLIC_OPERATOR_SYMBOL:
        return symbols[row.operands[0]]
    if operator == pb.SYMBOLIC_OPERATOR_INTEGER:
        return sympy.Integer(row.integer)
    if operator == pb.SYMBOLIC_OPERATOR_RATIONAL:
        return sympy.Rational(row.integer, row.denominator)
    if operator == pb.SYMBOLIC_OPERATOR_FLOATING:
        return sympy.Float(row.floating)
    if operator == pb.SYMBOLIC_OPERATOR_TRUE:
        return sympy.true
    if operator == pb.SYMBOLIC_OPERATOR_FALSE:
        return sympy.false
    constructor = CONSTRUCTORS.get(operator)
    if constructor is None:
        raise DecodeError(f"unknown operator number {operator}", field="expressions.operator")
    operands = [sympy_expression(body, operand, symbols) for operand in row.operands]
    try:
        result: sympy.Basic = constructor(*operands)
    except (TypeError, ValueError, ArithmeticError, AssertionError, AttributeError) as error:
        raise DecodeError(
            f"operands do not fit {pb.SymbolicOperator.Name(operator)}: {error}",
            field=f"expressions[{index}]",
        ) from None
    return result


def scalar(
    body: pb.GraphBody, index: int, env: ShapeEnv, symbols: Sequence[sympy.Symbol]
) -> int | float | bool | torch.SymInt | torch.SymFloat | torch.SymBool:
    """A row of `body.expressions` as a number of `env`."""
    expr = sympy_expression(body, index, symbols)
    if expr is sympy.true or expr is sympy.false:
        return bool(expr)
    if isinstance(expr, sympy.Integer):
        return int(expr)
    if isinstance(expr, sympy.Number):
        return float(expr)
    if isinstance(expr, sympy.logic.boolalg.Boolean) and not isinstance(expr, sympy.Symbol):
        return env.create_symboolnode(expr)
    if expr.is_integer:
        return env.create_symintnode(expr, hint=None)
    return env.create_symfloatnode(expr, hint=None)


def example(body: pb.GraphBody, index: int) -> Any:
    """A row of `body.expressions` with the example values put in."""
    values: list[Any] = []
    for row in body.symbols:
        if row.kind == pb.SYMBOL_KIND_FLOAT:
            values.append(sympy.Float(row.float_hint))
        else:
            values.append(sympy.Integer(row.hint if row.HasField("hint") else UNKNOWN_EXAMPLE))
    expr = sympy_expression(body, index, values)
    if expr is sympy.true or expr is sympy.false:
        return bool(expr)
    return int(expr) if expr.is_integer else float(expr)


def contiguous(shape: Sequence[Any]) -> tuple[Any, ...]:
    """Strides of a contiguous tensor as products of symbolic sizes."""
    strides = []
    step: Any = 1
    for size in reversed(shape):
        strides.append(step)
        step = step * size
    return tuple(reversed(strides))
