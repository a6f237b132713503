"""Checks the AST of generated Python: wrappers that call kernels, and Triton kernels."""

from __future__ import annotations

import ast
import re
from typing import Final

from lazyfx_server.security.native_source.cpp import check_cpp
from lazyfx_server.security.native_source.refusal import (
    NativeSourceRefused,
    is_plain_literal,
    refuse,
)

_IMPORTED: Final = re.compile(
    r"__future__|math|cmath|random|os|tempfile|ctypes|contextlib|functools|itertools"
    r"|torch|torch\.(?:ops|cuda|fx|utils\._triton|testing)"
    r"|torch\._(?:inductor|dynamo|C|higher_order_ops|subclasses|prims|library)(?:\.\w{1,60}){0,6}"
    r"|triton(?:\.\w{1,40}){0,5}",
    re.ASCII,
)
# Imported by every wrapper but used by none.
_NEVER_USED: Final = frozenset({"os", "tempfile"})
_NEVER: Final = _NEVER_USED | frozenset(
    {
        *("eval", "exec", "compile", "open", "input", "breakpoint", "help", "memoryview"),
        *("getattr", "setattr", "delattr", "vars", "locals", "subprocess", "sys", "importlib"),
        *("builtins", "ctypes", "shutil", "socket", "pickle", "marshal", "runpy", "operator"),
        *("attrgetter", "methodcaller", "multiprocessing", "pathlib", "zipfile", "inspect"),
    }
)
_NEVER_READ: Final = frozenset(
    {
        *("system", "popen", "spawn", "load_library", "import_module", "load_inline"),
        *("cpp_extension", "from_file", "_load_library", "serialization", "import_submodule"),
    }
)
# The same, for torch only: Triton also has a load and a jit.
_NEVER_READ_OF_TORCH: Final = frozenset(
    {"classes", "hub", "jit", "load", "multiprocessing", "package", "save", "serialization"}
)
# Names that start programs, and names that compile source instead of AsyncCompile.
_NEVER_LIKE: Final = re.compile(
    r"exec[lv]\w*|spawn\w*|posix_spawn\w*|fork\w*|popen\w*|Popen|\w*CodeCache|\w*CppBuilder"
)
# Methods of tensors and of Triton have these names too.
_ALSO_METHODS: Final = frozenset({"compile", "input", "open", "exec", "eval", "inspect"})
_DUNDER: Final = re.compile(r"__\w+__")
_USED_DUNDERS: Final = frozenset({"__file__", "__init__", "__name__"})
_CPP: Final = frozenset({"cpp_pybinding", "cpp"})
_PYTHON: Final = frozenset({"triton"})
_REFUSED: Final = (
    *(ast.JoinedStr, ast.Await, ast.AsyncFunctionDef, ast.AsyncFor, ast.AsyncWith, ast.Yield),
    *(ast.YieldFrom, ast.Nonlocal, ast.Global, ast.Match, ast.ExceptHandler),
)
# torch writes its choice of kernels into a string at the top of the source.
_PREFACE: Final = "\nCompile-time auto-tuning block"


def check_wrapper(source: str) -> None:
    """Check one Python source: a wrapper of kernels, or a Triton kernel.

    C++ and Python sources in its strings are checked too.

    Args:
        source: The source as passed to the interpreter.

    Raises:
        NativeSourceRefused: It contains something that the templates do not write.
    """
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise NativeSourceRefused(f"it is not Python: {type(error).__name__}") from error
    taken = _sources_in(tree)
    read = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    for node in ast.walk(tree):
        reason = _reason(node, taken)
        if (
            not reason
            and isinstance(node, ast.Name)
            and node.id == "torch"
            and id(node) not in read
        ):
            reason = "an alias of torch"
        if reason:
            line = getattr(node, "lineno", 1)
            start = len("".join(source.splitlines(keepends=True)[: line - 1]))
            raise refuse(reason, source, start)


def _sources_in(tree: ast.Module) -> set[ast.AST]:
    """Check the strings of a wrapper that are themselves sources."""
    found: set[ast.AST] = set()
    first = tree.body[0] if tree.body else None
    if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
        preface = first.value.value
        if isinstance(preface, str) and preface.startswith(_PREFACE):
            found.add(first.value)
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        for argument in node.args:
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                if node.func.attr in _CPP:
                    check_cpp(argument.value)
                    found.add(argument)
                elif node.func.attr in _PYTHON and "\n" in argument.value:
                    check_wrapper(argument.value)
                    found.add(argument)
    return found


def _reason(node: ast.AST, taken: set[ast.AST]) -> str:
    """Why a part of the tree is refused; "" if it is allowed."""
    if isinstance(node, ast.Constant):
        return "" if node in taken else _reason_of_constant(node.value)
    if isinstance(node, ast.Name):
        return _reason_of_name(node.id)
    if isinstance(node, ast.Attribute):
        return _reason_of_attribute(node)
    if isinstance(node, ast.Import):
        known = all(
            _IMPORTED.fullmatch(alias.name)
            and not (alias.asname and (alias.name == "torch" or _is_never(alias.asname)))
            for alias in node.names
        )
        return "" if known else "an unknown import"
    if isinstance(node, ast.ImportFrom):
        return _reason_of_import(node)
    if isinstance(node, (ast.arg, ast.FunctionDef, ast.ClassDef, ast.keyword)):
        name = node.name if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else node.arg
        return "a name that wrappers do not use" if _is_never(name or "") else ""
    return "a statement that wrappers do not use" if isinstance(node, _REFUSED) else ""


def _is_never(name: str) -> bool:
    return name in _NEVER or bool(_NEVER_LIKE.fullmatch(name))


def _reason_of_attribute(node: ast.Attribute) -> str:
    refused = _NEVER_READ
    if isinstance(node.value, ast.Name) and node.value.id == "torch":
        refused = refused | _NEVER_READ_OF_TORCH
    never = _is_never(node.attr) and node.attr not in _ALSO_METHODS
    found = never or node.attr in refused or _DUNDER.fullmatch(node.attr)
    return "an attribute that wrappers do not use" if found else ""


def _reason_of_import(node: ast.ImportFrom) -> str:
    module = node.module or ""
    known = not node.level and module not in _NEVER_USED and _IMPORTED.fullmatch(module)
    refused = _NEVER | _NEVER_READ | {"*"}
    if module == "torch":
        refused = refused | _NEVER_READ_OF_TORCH
    names = {name for alias in node.names for name in (alias.name, alias.asname)}
    never = names & refused or any(_NEVER_LIKE.fullmatch(name) for name in names if name)
    return "" if known and not never else "an unknown import"


def _reason_of_name(name: str) -> str:
    refused = _is_never(name) or (_DUNDER.fullmatch(name) and name not in _USED_DUNDERS)
    return "a name that wrappers do not use" if refused else ""


def _reason_of_constant(value: object) -> str:
    if isinstance(value, bytes):
        return "a bytes literal"
    if isinstance(value, str):
        plain = value.replace("\n", "\\n").replace("\t", "\\t")
        return "" if is_plain_literal(plain) else "an unknown string"
    return ""
