"""Checks whether generated Python source matches its graph, statement by statement.

torch.fx writes graph data into source text. The result is parsed here with `ast` and checked
against the graph: each statement must correspond to a node, in order, with that node's target and
arguments, and there must be nothing else. Nothing is executed.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch.fx import Graph
from torch.fx.graph import PythonCode

from lazyfx.shared.source.mismatch import SourceMismatchError
from lazyfx.shared.source.statements import Body

# The syntax of types: names, brackets and bars, but no calls.
_PARTS_OF_TYPES = (
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Constant),
    *(ast.BinOp, ast.BitOr, ast.expr_context),
)


def check_source(code: str, names: Mapping[str, object], graph: Graph) -> None:
    """Check the source of a graph.

    Args:
        code: The source that torch.fx wrote.
        names: The values of its global names: `PythonCode.globals`.
        graph: The graph from which it was generated.

    Raises:
        SourceMismatchError: It does not match the graph; names the node.
        SyntaxError: It is not Python source: the graph, or its names, cannot be written.
    """
    Body(_only_function(_parsed(code)), names, graph).check()


@contextmanager
def checked_generation(graph: Graph) -> Iterator[None]:
    """Within the block, check source that is generated for a graph before anything uses it."""

    def python_code(*args: object, **kwargs: object) -> PythonCode:
        generated = type(graph).python_code(graph, *args, **kwargs)  # type: ignore[arg-type]
        check_source(generated.src, generated.globals, graph)
        return generated

    # An attribute of this graph instance: torch asks the graph for its code.
    graph.python_code = python_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(graph).pop("python_code", None)


def _parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceMismatchError(f"it cannot be parsed: {error}") from error


def _only_function(statements: Sequence[ast.stmt]) -> ast.FunctionDef:
    if len(statements) != 1 or not isinstance(statements[0], ast.FunctionDef):
        raise SourceMismatchError("the source contains more than the function")
    function = statements[0]
    if function.name != "forward" or function.decorator_list:
        raise SourceMismatchError("the function is not forward(self, ...)")
    for argument in ast.walk(function.args):
        if isinstance(argument, ast.arg):
            _check_annotation(argument.annotation)
    _check_annotation(function.returns)
    return function


def _check_annotation(annotation: ast.expr | None) -> None:
    """Annotations are evaluated with the function but must not affect what it computes."""
    if annotation is not None and not all(
        isinstance(part, _PARTS_OF_TYPES) for part in ast.walk(annotation)
    ):
        raise SourceMismatchError(f"{ast.unparse(annotation)[:200]} is not a type")
