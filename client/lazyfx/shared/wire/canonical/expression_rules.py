"""Checks symbolic expressions: order of first use, arity, and bounds on their size."""

from __future__ import annotations

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.format import MAX_DEPTH, MAX_EXPRESSION_BITS, MAX_EXPRESSION_TREE
from lazyfx.shared.wire.values.symbolic import CONSTRUCTORS, MAX_EXPONENT, POWERS
from lazyfx.v1 import graph_pb2 as pb

_BINARY = frozenset({
    pb.SYMBOLIC_OPERATOR_POWER, pb.SYMBOLIC_OPERATOR_FLOOR_DIVIDE, pb.SYMBOLIC_OPERATOR_MODULO,
    pb.SYMBOLIC_OPERATOR_EQUAL, pb.SYMBOLIC_OPERATOR_NOT_EQUAL, pb.SYMBOLIC_OPERATOR_LESS,
    pb.SYMBOLIC_OPERATOR_LESS_EQUAL, pb.SYMBOLIC_OPERATOR_GREATER,
    pb.SYMBOLIC_OPERATOR_GREATER_EQUAL, pb.SYMBOLIC_OPERATOR_CEIL_DIVIDE,
    pb.SYMBOLIC_OPERATOR_TRUE_DIVIDE, pb.SYMBOLIC_OPERATOR_INTEGER_TRUE_DIVIDE,
    pb.SYMBOLIC_OPERATOR_PYTHON_MODULO, pb.SYMBOLIC_OPERATOR_EXACT_DIVIDE,
    pb.SYMBOLIC_OPERATOR_FLOAT_POWER, pb.SYMBOLIC_OPERATOR_POWER_BY_NATURAL,
    pb.SYMBOLIC_OPERATOR_ROUND_DECIMAL, pb.SYMBOLIC_OPERATOR_LEFT_SHIFT,
    pb.SYMBOLIC_OPERATOR_RIGHT_SHIFT, pb.SYMBOLIC_OPERATOR_BITWISE_AND,
    pb.SYMBOLIC_OPERATOR_BITWISE_OR,
})  # fmt: skip
_TERNARY = frozenset({pb.SYMBOLIC_OPERATOR_MODULAR_INDEX, pb.SYMBOLIC_OPERATOR_WHERE})
_MANY = frozenset({
    pb.SYMBOLIC_OPERATOR_ADD, pb.SYMBOLIC_OPERATOR_MULTIPLY, pb.SYMBOLIC_OPERATOR_MINIMUM,
    pb.SYMBOLIC_OPERATOR_MAXIMUM, pb.SYMBOLIC_OPERATOR_AND, pb.SYMBOLIC_OPERATOR_OR,
    pb.SYMBOLIC_OPERATOR_NON_OVERLAPPING_AND_DENSE,
})  # fmt: skip
_ATOMS = frozenset({
    pb.SYMBOLIC_OPERATOR_INTEGER, pb.SYMBOLIC_OPERATOR_RATIONAL, pb.SYMBOLIC_OPERATOR_FLOATING,
    pb.SYMBOLIC_OPERATOR_TRUE, pb.SYMBOLIC_OPERATOR_FALSE,
})  # fmt: skip


class ExpressionChecker:
    """Follows references into `expressions` and `symbols`."""

    def __init__(self, body: pb.GraphBody) -> None:
        self._rows = body.expressions
        self._symbols = body.symbols
        self._next = 0
        self._next_symbol = 0
        self._trees: list[int] = []
        self._bits: list[int] = []
        self._constant: list[bool] = []

    def use(self, index: int, depth: int = 0) -> None:
        """Check a reference to an expression; its operands precede it."""
        if index < self._next:
            return
        field = f"expressions[{index}]"
        if index >= len(self._rows) or depth >= MAX_DEPTH:
            raise DecodeError("out of range, or nested too deeply", field=field)
        row = self._rows[index]
        if row.operator == pb.SYMBOLIC_OPERATOR_SYMBOL:
            self._symbol(row, field)
        else:
            self._operands(row, index, field, depth)
        if index != self._next:
            raise DecodeError("out of first-use order", field=field)
        self._next += 1
        self._measure(row, field)

    def use_argument(self, index: int, field: str) -> None:
        """Check a reference to an expression that is an argument of a call."""
        self.use(index)
        if self._constant[index]:
            raise DecodeError("constants must be literals, not expressions", field=field)

    def finish(self) -> None:
        """Check that all rows were used."""
        if self._next != len(self._rows):
            raise DecodeError(f"row {self._next} is never used", field="expressions")
        if self._next_symbol != len(self._symbols):
            raise DecodeError(f"row {self._next_symbol} is never used", field="symbols")

    def _symbol(self, row: pb.SymbolicExpression, field: str) -> None:
        if len(row.operands) != 1 or row.operands[0] > self._next_symbol:
            raise DecodeError("symbols are out of first-use order", field=field)
        if row.operands[0] == self._next_symbol:
            if self._next_symbol >= len(self._symbols):
                raise DecodeError("no such symbol", field=field)
            symbol = self._symbols[self._next_symbol]
            if not 1 <= symbol.kind <= 4 or (
                symbol.HasField("minimum")
                and symbol.HasField("maximum")
                and symbol.minimum > symbol.maximum
            ):
                raise DecodeError("no kind, or an empty range", field=f"symbols[{row.operands[0]}]")
            self._next_symbol += 1

    def _operands(self, row: pb.SymbolicExpression, index: int, field: str, depth: int) -> None:
        operator, count = row.operator, len(row.operands)
        if operator in _ATOMS:
            fits = count == 0
        elif operator in _BINARY:
            fits = count == 2
        elif operator in _TERNARY:
            fits = count == 3
        elif operator in _MANY:
            fits = count >= 2
        else:
            fits = count == 1 and operator in CONSTRUCTORS
        if not fits or (operator == pb.SYMBOLIC_OPERATOR_RATIONAL) != (row.denominator > 1):
            raise DecodeError("operands that do not fit the operator", field=field)
        for operand in row.operands:
            if operand >= index:
                raise DecodeError("a forward reference", field=field)
            self.use(operand, depth + 1)

    def _measure(self, row: pb.SymbolicExpression, field: str) -> None:
        """Bound the size of a row's tree, and of the numbers that it can yield."""
        tree, bits = 1, 64
        if row.operands and row.operator != pb.SYMBOLIC_OPERATOR_SYMBOL:
            tree = 1 + sum(self._trees[operand] for operand in row.operands)
            bits = sum(self._bits[operand] for operand in row.operands)
        if row.operator in POWERS:
            exponent = self._rows[row.operands[1]]
            if (
                exponent.operator != pb.SYMBOLIC_OPERATOR_INTEGER
                or abs(exponent.integer) > MAX_EXPONENT
            ):
                raise DecodeError("an exponent that is not a small integer", field=field)
            bits = self._bits[row.operands[0]] * max(1, abs(exponent.integer))
        if tree > MAX_EXPRESSION_TREE or bits > MAX_EXPRESSION_BITS:
            raise DecodeError("too large when written out", field=field)
        self._trees.append(tree)
        self._bits.append(bits)
        self._constant.append(
            row.operator != pb.SYMBOLIC_OPERATOR_SYMBOL
            and all(self._constant[operand] for operand in row.operands)
        )
