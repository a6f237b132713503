"""What names in generated source stand for; looked up, never imported or executed."""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Mapping, Sequence

from lazyfx_server.security.written.errors import SourceMismatchError

_NONE_TYPE = "NoneType = type(None)"


def imported(import_block: Sequence[ast.stmt]) -> dict[str, object]:
    """The names that the imports before a source bind.

    Raises:
        SourceMismatchError: There is something else than imports of what is loaded here.
    """
    names: dict[str, object] = {}
    for statement in import_block:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                bound = alias.asname or alias.name.partition(".")[0]
                names[bound] = _module(alias.name if alias.asname else bound)
        elif isinstance(statement, ast.ImportFrom) and statement.module and not statement.level:
            for alias in statement.names:
                names[alias.asname or alias.name] = _member(_module(statement.module), alias.name)
        elif ast.unparse(statement) == _NONE_TYPE:
            names["NoneType"] = type(None)
        else:
            raise SourceMismatchError("there is something beside imports before the function")
    return names


def resolve(expression: ast.expr, names: Mapping[str, object]) -> object:
    """What a dotted name stands for.

    Raises:
        SourceMismatchError: It is no dotted name, or stands for nothing.
    """
    if isinstance(expression, ast.Name):
        if expression.id in names:
            return names[expression.id]
        return _member(builtins, expression.id)
    if isinstance(expression, ast.Attribute):
        return _member(resolve(expression.value, names), expression.attr)
    raise SourceMismatchError(f"{ast.unparse(expression)[:200]} is not a name")


def _module(name: str) -> object:
    try:
        return sys.modules[name]
    except KeyError:
        raise SourceMismatchError(f"it imports {name[:200]}, which is not loaded") from None


def _member(owner: object, name: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError:
        raise SourceMismatchError(f"{name[:200]!r} stands for nothing") from None
