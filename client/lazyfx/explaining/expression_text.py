"""Symbolic expressions as text with placeholders for symbols, and symbols as text."""

from __future__ import annotations

from typing import NamedTuple

from lazyfx.v1 import graph_pb2 as pb

_INFIX = {
    pb.SYMBOLIC_OPERATOR_ADD: " + ",
    pb.SYMBOLIC_OPERATOR_MULTIPLY: "*",
    pb.SYMBOLIC_OPERATOR_FLOOR_DIVIDE: "//",
    pb.SYMBOLIC_OPERATOR_MODULO: " % ",
    pb.SYMBOLIC_OPERATOR_EQUAL: " == ",
    pb.SYMBOLIC_OPERATOR_NOT_EQUAL: " != ",
    pb.SYMBOLIC_OPERATOR_LESS: " < ",
    pb.SYMBOLIC_OPERATOR_LESS_EQUAL: " <= ",
    pb.SYMBOLIC_OPERATOR_GREATER: " > ",
    pb.SYMBOLIC_OPERATOR_GREATER_EQUAL: " >= ",
}
_KINDS: dict[int, str] = {
    pb.SYMBOL_KIND_UNBACKED: ", data-dependent",
    pb.SYMBOL_KIND_FLOAT: ", a float",
    pb.SYMBOL_KIND_UNBACKED_FLOAT: ", a data-dependent float",
}


class Symbol(NamedTuple):
    """A free symbol: its number in its message, and its description."""

    number: int
    known: tuple[object, ...]
    text: str


class Expression(NamedTuple):
    """An expression: pieces of text, with a symbol between each two of them."""

    parts: tuple[str, ...]
    symbols: tuple[Symbol, ...]

    def text(self) -> str:
        """The expression, with a description of its symbols."""
        names = [f"s{symbol.number}" for symbol in self.symbols] + [""]
        written = "".join(part + name for part, name in zip(self.parts, names, strict=True))
        known = dict.fromkeys(f"s{symbol.number} {symbol.text}" for symbol in self.symbols)
        return f"{written} where {', '.join(known)}" if known else written


class Expressions:
    """Reads the expressions of one message, each once."""

    def __init__(self, body: pb.GraphBody) -> None:
        self._body = body
        self._read: dict[int, Expression] = {}

    def read(self, index: int) -> Expression:
        """Read the expression at an index."""
        found = self._read.get(index)
        if found is None:
            found = self._read[index] = self._build(index)
        return found

    def _build(self, index: int) -> Expression:
        row = self._body.expressions[index]
        operator = row.operator
        if operator == pb.SYMBOLIC_OPERATOR_SYMBOL:
            return Expression(("", ""), (self._symbol(row.operands[0]),))
        if operator == pb.SYMBOLIC_OPERATOR_INTEGER:
            return Expression((str(row.integer),), ())
        if operator == pb.SYMBOLIC_OPERATOR_RATIONAL:
            return Expression((f"{row.integer}/{row.denominator}",), ())
        if operator == pb.SYMBOLIC_OPERATOR_FLOATING:
            return Expression((repr(row.floating),), ())
        infix = _INFIX.get(operator)
        name = _word(operator)
        opening, between, closing = ("(", infix, ")") if infix else (f"{name}(", ", ", ")")
        joined = Expression((opening,), ())
        for place, operand in enumerate(row.operands):
            joined = _join(joined, between if place else "", self.read(operand))
        return _join(joined, closing, Expression(("",), ()))

    def _symbol(self, number: int) -> Symbol:
        row = self._body.symbols[number]
        low = row.minimum if row.HasField("minimum") else None
        high = row.maximum if row.HasField("maximum") else None
        text = f"in {'' if low is None else low}..{'' if high is None else high}"
        if row.HasField("hint"):
            text += f", example {row.hint}"
        if row.HasField("float_hint"):
            text += f", example {row.float_hint}"
        text += _KINDS.get(row.kind, "")
        return Symbol(number, (row.SerializeToString(deterministic=True),), text)


def _join(left: Expression, between: str, right: Expression) -> Expression:
    middle = left.parts[-1] + between + right.parts[0]
    return Expression((*left.parts[:-1], middle, *right.parts[1:]), (*left.symbols, *right.symbols))


def _word(number: int) -> str:
    """An operator in lower case; its number if this version has no name for it."""
    if number not in pb.SymbolicOperator.values():
        return f"operator_{number}"
    return pb.SymbolicOperator.Name(number).removeprefix("SYMBOLIC_OPERATOR_").lower()  # type: ignore[arg-type]
