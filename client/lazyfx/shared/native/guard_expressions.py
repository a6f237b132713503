"""Symbolic expressions outside of a graph, with symbols that both sides number alike."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import sympy
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.shared.wire.canonical.expression_rules import ExpressionChecker
from lazyfx.shared.wire.values.symbolic import ExpressionWriter
from lazyfx.shared.wire.values.symbols import sympy_expression
from lazyfx.v1 import graph_pb2 as pb


def expressions_to(
    expressions: Iterable[sympy.Basic], symbols: Sequence[sympy.Symbol], env: ShapeEnv
) -> tuple[pb.GraphBody, list[int]]:
    """Expressions as rows.

    Args:
        expressions: About symbols of `env`.
        symbols: Written first, so that the i-th of them is symbol i.
        env: Where the symbols live.

    Returns:
        A body with symbols and expressions only, and the row of each expression.

    Raises:
        UnsupportedGraphError: An expression has no place in the format.
    """
    body = pb.GraphBody()
    writer = ExpressionWriter(body)
    for symbol in symbols:
        writer.expression(symbol, env)
    return body, [writer.expression(expression, env) for expression in expressions]


def expressions_from(
    body: pb.GraphBody, rows: Iterable[int], symbols: Sequence[sympy.Symbol]
) -> list[sympy.Basic]:
    """Rows as expressions about one's own symbols.

    Raises:
        DecodeError: They are not what `expressions_to` writes.
    """
    wanted = list(rows)
    checker = ExpressionChecker(body)
    for row in (*range(len(body.symbols)), *wanted):
        checker.use(row)
    checker.finish()
    return [sympy_expression(body, row, symbols) for row in wanted]
