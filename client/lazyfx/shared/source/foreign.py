"""Checks whether source and imports from another process match a graph.

Source that a server generated is written to files that people run. None of it is trusted: the
function is checked against this process's own graph, and the imports are only parsed for the names
that they bind, then written again.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from torch.fx import Graph, Node
from torch.fx.graph import _custom_builtins
from torch.fx.graph_module import _format_import_block
from torch.package.importer import ObjNotFoundError, sys_importer

from lazyfx.shared.source.check import check_source
from lazyfx.shared.source.definitions import definitions
from lazyfx.shared.source.mismatch import SourceMismatchError

_WRAPPED = re.compile(r"^torch\.fx\.wrap\('([A-Za-z_][A-Za-z_0-9]{0,200})'\)$", re.MULTILINE)
# A statement of torch.fx that is not an import: `NoneType = type(None)`.
_BUILTIN_LINES: Mapping[str, str] = {
    builtin.import_str: name for name, builtin in _custom_builtins.items()
}


def check_generated(code: str, import_block: str, graph: Graph) -> str:
    """Check source that another process generated for a graph.

    Args:
        code: A function as written by torch.fx.
        import_block: The imports before it.
        graph: The graph from which it should have been generated.

    Returns:
        Imports for the names that the function uses, generated here.

    Raises:
        SourceMismatchError: It does not match the graph; names the node.
    """
    _check_comments(code)
    names = _bound_names(import_block, graph)
    try:
        check_source(code, names, graph)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise SourceMismatchError(f"it cannot be parsed: {error}") from error
    return import_block_of(names)


def import_block_of(names: Mapping[str, object]) -> str:
    """The statements that bind the names of generated source."""
    own = definitions(names)
    imported = {name: value for name, value in names.items() if name not in own}
    return "\n".join([_format_import_block(imported, sys_importer), *own.values()])


def _check_comments(code: str) -> None:
    """Refuse comments: one may set the encoding with which the file is read again."""
    if "#" not in code:
        return
    try:
        found = any(
            token.type == tokenize.COMMENT
            for token in tokenize.generate_tokens(io.StringIO(code).readline)
        )
    except (tokenize.TokenError, SyntaxError, ValueError) as error:
        raise SourceMismatchError(f"it cannot be parsed: {error}") from error
    if found:
        raise SourceMismatchError("there is a comment in it")


def _bound_names(import_block: str, graph: Graph) -> dict[str, object]:
    """The value of each name of an import block; only objects that the graph uses."""
    callables = list(_callables(graph))
    names: dict[str, object] = {}
    rest = _without_definitions(import_block, callables, names)
    importable = dict(_importable(callables))
    for line in filter(None, map(str.strip, rest.split("\n"))):
        builtin = _BUILTIN_LINES.get(line)
        if builtin is not None:
            names[builtin] = _custom_builtins[builtin].obj
            continue
        module, attribute, name = _import_of(line)
        if (module, attribute) not in importable:
            raise SourceMismatchError(f"it imports {attribute[:100]!r} of {module[:100]!r}")
        if name in names or name in _custom_builtins:
            raise SourceMismatchError(f"it imports {name[:100]!r} twice")
        names[name] = importable[module, attribute]
    return names


def _without_definitions(
    import_block: str, callables: Iterable[Callable[..., Any]], names: dict[str, object]
) -> str:
    """The block without definitions of names that cannot be imported, which are added."""
    rest = import_block
    odd = [each for each in callables if definitions({"f": each})]
    for name in dict.fromkeys(_WRAPPED.findall(import_block)) if odd else ():
        for each in odd:
            text = definitions({name: each})[name]
            if text in rest:
                rest = rest.replace(text, "", 1)
                names[name] = each
                break
    return rest


def _import_of(line: str) -> tuple[str, str, str]:
    """Module, attribute and name of `from module import attribute as name`."""
    try:
        statements = ast.parse(line).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        statements = []
    if len(statements) == 1 and isinstance(statements[0], ast.ImportFrom):
        statement = statements[0]
        alias = statement.names[0]
        if len(statement.names) == 1 and statement.module and not statement.level:
            return statement.module, alias.name, alias.asname or alias.name
    raise SourceMismatchError(f"{line[:200]!r} is not an import that a graph needs")


def _callables(graph: Graph) -> Iterator[Callable[..., Any]]:
    """The functions and classes that the nodes of a graph call or pass as arguments, each once."""
    seen: set[int] = set()
    stack: list[object] = []
    for node in graph.nodes:
        stack.extend([node.target, node.args, node.kwargs])
        while stack:
            value = stack.pop()
            if isinstance(value, (tuple, list)):
                stack.extend(value)
                if hasattr(value, "_fields"):
                    stack.append(type(value))
            elif isinstance(value, dict):
                stack.extend(value.values())
            elif isinstance(value, slice):
                stack.extend((value.start, value.stop, value.step))
            elif callable(value) and not isinstance(value, Node) and id(value) not in seen:
                seen.add(id(value))
                yield value


def _importable(
    callables: Iterable[Callable[..., Any]],
) -> Iterator[tuple[tuple[str, str], Callable[..., Any]]]:
    for each in callables:
        try:
            yield sys_importer.get_name(each), each
        except (ObjNotFoundError, AttributeError, TypeError, ImportError):
            continue
