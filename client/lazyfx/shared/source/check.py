"""Whether generated Python source says what its graph says, statement by statement.

torch.fx writes graph data into text. What comes out is read back here with `ast` and held
against the graph: each statement must be one node's, in order, with that node's target and
arguments, and nothing else may be there. Nothing is executed for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from torch.fx import Graph
from torch.fx.graph import PythonCode

from lazyfx.shared.source.mismatch import SourceMismatchError
from lazyfx.shared.source.statements import Body

# What types are written with: names, brackets and bars, and no calls.
_PARTS_OF_TYPES = (
    *(ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Constant),
    *(ast.BinOp, ast.BitOr, ast.expr_context),
)


def check_source(code: str, names: Mapping[str, object], graph: Graph) -> None:
    """Check the source of a graph.

    Args:
        code: What torch.fx wrote.
        names: What the names in it stand for: `PythonCode.globals`.
        graph: What it was written from.

    Raises:
        SourceMismatchError: It is not the graph's; names the node.
        SyntaxError: It is not Python source: the graph, or its names, cannot be written.
    """
    Body(_only_function(_parsed(code)), names, graph).check()


@contextmanager
def checked_generation(graph: Graph) -> Iterator[None]:
    """Check the source that is generated of a graph inside, before anybody has it."""

    def python_code(*args: object, **kwargs: object) -> PythonCode:
        generated = type(graph).python_code(graph, *args, **kwargs)  # type: ignore[arg-type]
        check_source(generated.src, generated.globals, graph)
        return generated

    # An attribute of this one graph: torch asks the graph for its code.
    graph.python_code = python_code  # type: ignore[method-assign]
    try:
        yield
    finally:
        vars(graph).pop("python_code", None)


def _parsed(text: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (ValueError, RecursionError, MemoryError) as error:
        raise SourceMismatchError(f"it cannot be read: {error}") from error


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
    """Types are evaluated with the function, and have no say in what it computes."""
    if annotation is not None and not all(
        isinstance(part, _PARTS_OF_TYPES) for part in ast.walk(annotation)
    ):
        raise SourceMismatchError(f"{ast.unparse(annotation)[:200]} is not a type")
