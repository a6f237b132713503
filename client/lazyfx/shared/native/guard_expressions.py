"""Symbolic expressions outside a graph, with symbols that both sides number alike."""

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
    """Write expressions as rows.

    Args:
        expressions: Expressions over symbols of `env`.
        symbols: Written first, so that the i-th one is symbol i.
        env: The ShapeEnv of the symbols.

    Returns:
        A body with symbols and expressions only, and the row of each expression.

    Raises:
        UnsupportedGraphError: The format does not support an expression.
    """
    body = pb.GraphBody()
    writer = ExpressionWriter(body)
    for symbol in symbols:
        writer.expression(symbol, env)
    return body, [writer.expression(expression, env) for expression in expressions]


def expressions_from(
    body: pb.GraphBody, rows: Iterable[int], symbols: Sequence[sympy.Symbol]
) -> list[sympy.Basic]:
    """Read rows as expressions over one's own symbols.

    Raises:
        DecodeError: They were not written by `expressions_to`.
    """
    wanted = list(rows)
    checker = ExpressionChecker(body)
    for row in (*range(len(body.symbols)), *wanted):
        checker.use(row)
    checker.finish()
    return [sympy_expression(body, row, symbols) for row in wanted]
