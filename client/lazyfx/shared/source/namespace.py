"""Resolves names in generated source by lookup, without importing or executing anything."""

from __future__ import annotations

import ast
import builtins
from collections.abc import Mapping

from lazyfx.shared.source.mismatch import SourceMismatchError


def resolve(expression: ast.expr, names: Mapping[str, object]) -> object:
    """The value of a dotted name.

    Raises:
        SourceMismatchError: It is not a dotted name, or is undefined.
    """
    if isinstance(expression, ast.Name):
        if expression.id in names:
            return names[expression.id]
        return _member(builtins, expression.id)
    if isinstance(expression, ast.Attribute):
        return _member(resolve(expression.value, names), expression.attr)
    raise SourceMismatchError(f"{ast.unparse(expression)[:200]} is not a name")


def _member(owner: object, name: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise SourceMismatchError(f"{name[:200]!r} is undefined") from None
