"""Symbolic sizes: sympy expressions <-> rows of closed operator trees.

Nothing is parsed from text. Rows are written in post-order, so that a row refers strictly
backwards; the operands of commutative operators are ordered by structure, so that names of symbols
do not affect the digest.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Final

import sympy
import torch
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._sympy import functions as sf
from torch.utils._sympy.numbers import IntInfinity, NegativeIntInfinity
from torch.utils._sympy.symbol import SymT, symbol_is_type

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.format import (
    MAX_DEPTH,
    MAX_EXPRESSION_TREE,
    MAX_INT64,
    MIN_INT64,
    QUIET_NAN_BITS,
)
from lazyfx.v1 import graph_pb2 as pb

SymbolicScalar = torch.SymInt | torch.SymFloat | torch.SymBool
Operator = pb.SymbolicOperator

# Operators whose rows have only operands: enum number -> sympy constructor.
CONSTRUCTORS: Final[dict[int, Callable[..., Any]]] = {
    pb.SYMBOLIC_OPERATOR_ADD: sympy.Add,
    pb.SYMBOLIC_OPERATOR_MULTIPLY: sympy.Mul,
    pb.SYMBOLIC_OPERATOR_POWER: sympy.Pow,
    pb.SYMBOLIC_OPERATOR_FLOOR_DIVIDE: sf.FloorDiv,
    pb.SYMBOLIC_OPERATOR_MODULO: sf.Mod,
    pb.SYMBOLIC_OPERATOR_MINIMUM: sf.Min,
    pb.SYMBOLIC_OPERATOR_MAXIMUM: sf.Max,
    pb.SYMBOLIC_OPERATOR_EQUAL: sympy.Eq,
    pb.SYMBOLIC_OPERATOR_NOT_EQUAL: sympy.Ne,
    pb.SYMBOLIC_OPERATOR_LESS: sympy.Lt,
    pb.SYMBOLIC_OPERATOR_LESS_EQUAL: sympy.Le,
    pb.SYMBOLIC_OPERATOR_GREATER: sympy.Gt,
    pb.SYMBOLIC_OPERATOR_GREATER_EQUAL: sympy.Ge,
    pb.SYMBOLIC_OPERATOR_AND: sympy.And,
    pb.SYMBOLIC_OPERATOR_OR: sympy.Or,
    pb.SYMBOLIC_OPERATOR_NOT: sympy.Not,
    pb.SYMBOLIC_OPERATOR_CEIL_DIVIDE: sf.CeilDiv,
    pb.SYMBOLIC_OPERATOR_TRUE_DIVIDE: sf.FloatTrueDiv,
    pb.SYMBOLIC_OPERATOR_TO_FLOAT: sf.ToFloat,
    pb.SYMBOLIC_OPERATOR_MODULAR_INDEX: sf.ModularIndexing,
    pb.SYMBOLIC_OPERATOR_INTEGER_TRUE_DIVIDE: sf.IntTrueDiv,
    pb.SYMBOLIC_OPERATOR_PYTHON_MODULO: sf.PythonMod,
    pb.SYMBOLIC_OPERATOR_EXACT_DIVIDE: sf.CleanDiv,
    pb.SYMBOLIC_OPERATOR_FLOAT_POWER: sf.FloatPow,
    pb.SYMBOLIC_OPERATOR_POWER_BY_NATURAL: sf.PowByNatural,
    pb.SYMBOLIC_OPERATOR_FLOOR_TO_INTEGER: sf.FloorToInt,
    pb.SYMBOLIC_OPERATOR_CEIL_TO_INTEGER: sf.CeilToInt,
    pb.SYMBOLIC_OPERATOR_TRUNCATE_TO_INTEGER: sf.TruncToInt,
    pb.SYMBOLIC_OPERATOR_TRUNCATE_TO_FLOAT: sf.TruncToFloat,
    pb.SYMBOLIC_OPERATOR_ROUND_TO_INTEGER: sf.RoundToInt,
    pb.SYMBOLIC_OPERATOR_ROUND_DECIMAL: sf.RoundDecimal,
    pb.SYMBOLIC_OPERATOR_WHERE: sf.Where,
    pb.SYMBOLIC_OPERATOR_LEFT_SHIFT: sf.LShift,
    pb.SYMBOLIC_OPERATOR_RIGHT_SHIFT: sf.RShift,
    pb.SYMBOLIC_OPERATOR_IDENTITY: sf.Identity,
    pb.SYMBOLIC_OPERATOR_ABSOLUTE: sympy.Abs,
    pb.SYMBOLIC_OPERATOR_SQUARE_ROOT: sf.OpaqueUnaryFn_sqrt,
    pb.SYMBOLIC_OPERATOR_COSINE: sf.OpaqueUnaryFn_cos,
    pb.SYMBOLIC_OPERATOR_COSINE_HYPERBOLIC: sf.OpaqueUnaryFn_cosh,
    pb.SYMBOLIC_OPERATOR_SINE: sf.OpaqueUnaryFn_sin,
    pb.SYMBOLIC_OPERATOR_SINE_HYPERBOLIC: sf.OpaqueUnaryFn_sinh,
    pb.SYMBOLIC_OPERATOR_TANGENT: sf.OpaqueUnaryFn_tan,
    pb.SYMBOLIC_OPERATOR_TANGENT_HYPERBOLIC: sf.OpaqueUnaryFn_tanh,
    pb.SYMBOLIC_OPERATOR_ARC_SINE: sf.OpaqueUnaryFn_asin,
    pb.SYMBOLIC_OPERATOR_ARC_COSINE: sf.OpaqueUnaryFn_acos,
    pb.SYMBOLIC_OPERATOR_ARC_TANGENT: sf.OpaqueUnaryFn_atan,
    pb.SYMBOLIC_OPERATOR_EXPONENTIAL: sf.OpaqueUnaryFn_exp,
    pb.SYMBOLIC_OPERATOR_LOGARITHM: sf.OpaqueUnaryFn_log,
    pb.SYMBOLIC_OPERATOR_ARC_SINE_HYPERBOLIC: sf.OpaqueUnaryFn_asinh,
    pb.SYMBOLIC_OPERATOR_LOGARITHM_2: sf.OpaqueUnaryFn_log2,
    pb.SYMBOLIC_OPERATOR_BITWISE_AND: sf.BitwiseFn_bitwise_and,
    pb.SYMBOLIC_OPERATOR_BITWISE_OR: sf.BitwiseFn_bitwise_or,
    pb.SYMBOLIC_OPERATOR_NON_OVERLAPPING_AND_DENSE: sf.IsNonOverlappingAndDenseIndicator,
}
# Operators whose results can be far larger than their operands; the right one is a small integer.
POWERS: Final = frozenset(
    {
        pb.SYMBOLIC_OPERATOR_POWER,
        pb.SYMBOLIC_OPERATOR_POWER_BY_NATURAL,
        pb.SYMBOLIC_OPERATOR_LEFT_SHIFT,
    }
)
MAX_EXPONENT: Final = 64
# Looked up by exact class; sympy and torch both have Min, Max and Mod. sympy's Mod, which
# Inductor's guards use, has the sign of the divisor.
_NUMBERS: Final[dict[type, int]] = {
    **{constructor: number for number, constructor in CONSTRUCTORS.items()},  # type: ignore[misc]
    sympy.Min: pb.SYMBOLIC_OPERATOR_MINIMUM,
    sympy.Max: pb.SYMBOLIC_OPERATOR_MAXIMUM,
    sympy.Mod: pb.SYMBOLIC_OPERATOR_PYTHON_MODULO,
}
_COMMUTATIVE: Final = frozenset(
    {
        pb.SYMBOLIC_OPERATOR_ADD,
        pb.SYMBOLIC_OPERATOR_MULTIPLY,
        pb.SYMBOLIC_OPERATOR_MINIMUM,
        pb.SYMBOLIC_OPERATOR_MAXIMUM,
        pb.SYMBOLIC_OPERATOR_AND,
        pb.SYMBOLIC_OPERATOR_OR,
    }
)


# Its length differs from row to row: torch represents such a size as a symbol without a value.
_JAGGED: Final = "a size of a jagged tensor, which is not a number"
_PADDED: Final = (
    "pass values and offsets, or a padded tensor and a mask, and build the jagged tensor outside "
    "the compiled code"
)


def float_key(value: float) -> tuple[int, float]:
    """A key that distinguishes -0.0 from 0.0 and treats all NaNs as equal."""
    if value != value:
        return (QUIET_NAN_BITS, 0.0)
    return (struct.unpack("<q", struct.pack("<d", value))[0], value)


class ExpressionWriter:
    """Interns the symbols and expressions of one message."""

    def __init__(self, body: pb.GraphBody) -> None:
        self._body = body
        self._symbols: dict[tuple[int, sympy.Symbol], int] = {}
        self._rows: dict[tuple[Any, ...], int] = {}
        self._integers: dict[int, int] = {}
        self._known: dict[tuple[int, sympy.Basic], int] = {}

    def scalar(self, value: SymbolicScalar) -> int:
        """Index of the expression row of a SymInt, SymFloat or SymBool."""
        node = value.node
        expr = getattr(node, "expr", None)
        if expr is None:
            raise UnsupportedGraphError(_JAGGED, remedy=_PADDED)
        return self.expression(expr, node.shape_env)

    def size(self, value: int | torch.SymInt) -> int:
        """Index of the expression row of a size, symbolic or not."""
        if type(value) is int:
            found = self._integers.get(value)
            if found is None:
                found = self._integers[value] = self._integer(value)
            return found
        return self.scalar(value)  # type: ignore[arg-type]

    def expression(self, expr: sympy.Basic, env: ShapeEnv) -> int:
        """Index of the row of `expr`, whose symbols are in `env`."""
        known = self._known.get((id(env), expr))
        if known is None:
            if sum(1 for _ in sympy.preorder_traversal(expr)) > MAX_EXPRESSION_TREE:
                raise UnsupportedGraphError("a symbolic expression is too large")
            known = self._known[id(env), expr] = self._write(expr, env, 0)
        return known

    def add(self, row: pb.SymbolicExpression) -> int:
        """Intern a row whose operands are already indices of this message."""
        key = (row.operator, tuple(row.operands), row.integer, row.denominator,
               float_key(row.floating))  # fmt: skip
        found = self._rows.get(key)
        if found is None:
            found = self._rows[key] = len(self._rows)
            self._body.expressions.append(row)
        return found

    def _integer(self, value: int) -> int:
        if not MIN_INT64 <= value <= MAX_INT64:
            raise UnsupportedGraphError(f"the size {value} does not fit into 64 bits")
        return self.add(pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_INTEGER, integer=value))

    def _write(self, expr: sympy.Basic, env: ShapeEnv, depth: int) -> int:
        if depth >= MAX_DEPTH:
            raise UnsupportedGraphError("a symbolic expression is nested too deeply")
        if isinstance(expr, sympy.Symbol):
            row = pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_SYMBOL)
            row.operands.append(self._symbol(expr, env))
            return self.add(row)
        if isinstance(expr, (sympy.Integer, int)):
            return self._integer(int(expr))
        if isinstance(expr, sympy.Rational):
            return self._rational(int(expr.p), int(expr.q))
        if isinstance(expr, sympy.Float):
            return self.add(
                pb.SymbolicExpression(operator=pb.SYMBOLIC_OPERATOR_FLOATING, floating=float(expr))
            )
        if expr is sympy.true or expr is sympy.false:
            flag = pb.SYMBOLIC_OPERATOR_TRUE if expr is sympy.true else pb.SYMBOLIC_OPERATOR_FALSE
            return self.add(pb.SymbolicExpression(operator=flag))
        number = _NUMBERS.get(type(expr))
        if number is None:
            raise UnsupportedGraphError(
                f"the format does not support the symbolic function {type(expr).__name__}",
                remedy="capture the graph with static shapes",
            )
        operands = list(expr.args)
        if number in POWERS and not (
            isinstance(operands[1], sympy.Integer) and abs(int(operands[1])) <= MAX_EXPONENT
        ):
            raise UnsupportedGraphError(
                "a symbolic power with an exponent that is not a small integer",
                remedy="capture the graph with static shapes",
            )
        if number in _COMMUTATIVE:
            operands.sort(key=lambda operand: self._order(operand, env))
        row = pb.SymbolicExpression(operator=number)  # type: ignore[arg-type]
        row.operands.extend([self._write(operand, env, depth + 1) for operand in operands])
        return self.add(row)

    def _rational(self, numerator: int, denominator: int) -> int:
        if not MIN_INT64 <= numerator <= MAX_INT64 or denominator > MAX_INT64:
            raise UnsupportedGraphError("a rational number does not fit into 64 bits")
        return self.add(
            pb.SymbolicExpression(
                operator=pb.SYMBOLIC_OPERATOR_RATIONAL,
                integer=numerator,
                denominator=denominator,
            )
        )

    def _order(self, expr: sympy.Basic, env: ShapeEnv) -> tuple[Any, ...]:
        """Sort key without symbol names: known symbols by number, new ones by their properties."""
        if isinstance(expr, sympy.Symbol):
            number = self._symbols.get((id(env), expr))
            if number is not None:
                return (1, number)
            row = describe_symbol(expr, env)
            return (2, row.SerializeToString(deterministic=True))
        if isinstance(expr, sympy.Number):
            return (0, float(expr), str(type(expr)))
        operands = [self._order(operand, env) for operand in expr.args]
        if _NUMBERS.get(type(expr)) in _COMMUTATIVE:
            operands.sort(key=repr)
        return (3, _NUMBERS.get(type(expr), 0), repr(operands))

    def _symbol(self, symbol: sympy.Symbol, env: ShapeEnv) -> int:
        key = (id(env), symbol)
        found = self._symbols.get(key)
        if found is None:
            found = self.add_symbol(key, describe_symbol(symbol, env))
        return found

    def add_symbol(self, key: Any, row: pb.Symbol) -> int:
        """Index of the symbol `key`, written as `row` if it is new."""
        found = self._symbols.get(key)
        if found is None:
            found = self._symbols[key] = len(self._symbols)
            self._body.symbols.append(row)
        return found


def describe_symbol(symbol: sympy.Symbol, env: ShapeEnv) -> pb.Symbol:
    """Kind, range and example value of a free symbol."""
    if symbol_is_type(symbol, SymT.UNBACKED_INT):
        row = pb.Symbol(kind=pb.SYMBOL_KIND_UNBACKED)
    elif symbol_is_type(symbol, SymT.UNBACKED_FLOAT):
        row = pb.Symbol(kind=pb.SYMBOL_KIND_UNBACKED_FLOAT)
    elif symbol_is_type(symbol, SymT.FLOAT):
        row = pb.Symbol(kind=pb.SYMBOL_KIND_FLOAT)
    elif symbol_is_type(symbol, SymT.SIZE):
        row = pb.Symbol(kind=pb.SYMBOL_KIND_SIZE)
    else:
        raise UnsupportedGraphError(f"the format does not support symbols of the kind of {symbol}")
    bounds = env.var_to_range.get(symbol)
    if bounds is not None and row.kind in {pb.SYMBOL_KIND_SIZE, pb.SYMBOL_KIND_UNBACKED}:
        if _finite(bounds.lower):
            row.minimum = int(bounds.lower)
        if _finite(bounds.upper):
            row.maximum = int(bounds.upper)
    hints = getattr(env, "backed_var_to_val", None)
    hint = (env.var_to_val if hints is None else hints).get(symbol)
    if hint is not None:
        if not isinstance(hint, (int, float, sympy.Number)):
            raise UnsupportedGraphError(_JAGGED, remedy=_PADDED)
        if row.kind == pb.SYMBOL_KIND_FLOAT:
            row.float_hint = float(hint)
        else:
            row.hint = int(hint)
    return row


def _finite(bound: Any) -> bool:
    """Whether a bound is meaningful: infinities and the largest sizes are not."""
    if isinstance(bound, (IntInfinity, NegativeIntInfinity)) or bound in (sympy.oo, -sympy.oo):
        return False
    return bool(MIN_INT64 + 1 < int(bound) < MAX_INT64 - 1)
