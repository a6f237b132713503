"""Translates annotations of torch's stubs and of Python functions to the types of `kinds`."""

from __future__ import annotations

import ast
import inspect
from typing import Any, Final

_NAMES: Final = {
    **dict.fromkeys(["Tensor", "MaskedTensor", "NDArray", "OutArray"], "Tensor"),
    **dict.fromkeys(["Number", "_complex", "complex"], "Number"),
    **dict.fromkeys(["int", "_int", "SymInt", "IntLikeType"], "int"),
    **dict.fromkeys(["float", "_float", "SymFloat"], "float"),
    **dict.fromkeys(["bool", "_bool", "SymBool", "BoolLikeType", "KeepDims"], "bool"),
    **dict.fromkeys(["str", "CastingModes"], "str"),
    **dict.fromkeys(["dtype", "_dtype"], "dtype"),
    **dict.fromkeys(["layout", "_layout"], "layout"),
    "memory_format": "memory_format",
    **dict.fromkeys(["DeviceLikeType", "Device", "device", "_device"], "Device"),
    **dict.fromkeys(["_size", "_symsize", "Size"], "list[int]"),
    **dict.fromkeys(
        ["_size_any_t", "_size_1_t", "_size_2_t", "_size_3_t", "AxisLike"], "int | list[int]"
    ),
    **dict.fromkeys(["_size_2_opt_t", "_size_3_opt_t"], "int | list[int | None] | None"),
    "_ratio_any_t": "float | list[float]",
    **dict.fromkeys(["Generator", "Storage", "TypedStorage", "UntypedStorage"], "Never"),
    "NotImplementedType": "bool | str",
    "DTypeLike": "dtype | str | Callable",
    **dict.fromkeys(["list", "tuple", "Sequence", "Iterable"], "list[Any]"),
    "Callable": "Callable",
    "dict": "dict",
    "None": "None",
    "NoneType": "None",
}
_LISTS = frozenset({"list", "List", "Sequence", "Iterable"})


def written(annotation: str) -> str:
    """An annotation as a type of `kinds`; unknown types become Any."""
    try:
        expression = ast.parse(annotation, mode="eval").body
    except SyntaxError:
        return "Any"
    return " | ".join(dict.fromkeys(_alternatives(expression))) or "Never"


def _alternatives(expression: ast.expr) -> list[str]:
    if isinstance(expression, ast.BinOp):
        return _alternatives(expression.left) + _alternatives(expression.right)
    if isinstance(expression, ast.Constant):
        value = expression.value
        if isinstance(value, str):  # a forward reference
            return _NAMES.get(value, "Any").split(" | ")
        return ["None" if value is None else type(value).__name__]
    if isinstance(expression, ast.Call):  # ForwardRef("Tensor")
        return _alternatives(expression.args[0])
    if isinstance(expression, ast.Subscript):
        return _generic(ast.unparse(expression.value).rpartition(".")[2], expression.slice)
    name = ast.unparse(expression).rpartition(".")[2]
    return [_NAMES.get(name, "Any")]


def _generic(name: str, parameter: ast.expr) -> list[str]:
    parts = parameter.elts if isinstance(parameter, ast.Tuple) else [parameter]
    if name == "Literal":
        return [type(ast.literal_eval(part)).__name__ for part in parts]
    if name in ("dict", "Callable"):
        return [name]
    if name not in _LISTS | {"Optional", "Union", "tuple"}:
        return ["Any"]
    inner = [word for part in parts if not _is_dots(part) for word in _alternatives(part)]
    if name in ("Optional", "Union"):
        return inner + (["None"] if name == "Optional" else [])
    return [f"list[{' | '.join(dict.fromkeys(inner)) or 'Any'}]"]


def _is_dots(expression: ast.expr) -> bool:
    return isinstance(expression, ast.Constant) and expression.value is ...


def of_stub(function: ast.FunctionDef) -> str:
    """The signature of a function of a stub file."""
    arguments = function.args
    dots = ast.Constant(value=...)
    arguments.defaults = [dots for _ in arguments.defaults]
    arguments.kw_defaults = [None if d is None else dots for d in arguments.kw_defaults]
    for part in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs):
        part.annotation = _retold(part)
    for extra in (arguments.vararg, arguments.kwarg):
        if extra is not None:
            extra.annotation = _retold(extra)
    return f"({ast.unparse(arguments)})"


def _retold(part: ast.arg) -> ast.expr:
    if part.annotation is None:
        return ast.Name("Self" if part.arg == "self" else "Any")
    return ast.parse(written(ast.unparse(part.annotation)), mode="eval").body


# String arguments that untyped parameters of Python functions accept.
_TAKE_WORDS = frozenset(
    {"dtype", "dtyp", "device", "message", "mode", "kind", "order", "side", "casting", "method"}
    | {"compute_mode", "arg", "arg1", "arg2", "to", "from_", "norm", "ord"}
)


def of_python(function: Any) -> str:
    """The signature of a Python function.

    Its annotations are documentation and narrower than what it accepts: None, or a list instead of
    a number.
    """
    parameters = inspect.signature(function).parameters.values()
    words: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and not any(w[:1] == "*" for w in words):
            words.append("*")
        star = "*" if parameter.kind is parameter.VAR_POSITIONAL else ""
        star = "**" if parameter.kind is parameter.VAR_KEYWORD else star
        default = "" if parameter.default is parameter.empty else " = ..."
        words.append(f"{star}{parameter.name}: {_of_parameter(parameter)}{default}")
        if parameter.kind is parameter.POSITIONAL_ONLY:
            words = [*(w for w in words if w != "/"), "/"]
    return f"({', '.join(words)})"


def _of_parameter(parameter: inspect.Parameter) -> str:
    annotation = parameter.annotation
    if annotation is parameter.empty:
        if parameter.name == "self":
            return "Self"
        takes_words = isinstance(parameter.default, str) or parameter.name in _TAKE_WORDS
        return "str | Callable | Any" if takes_words else "Any"
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    found = written(text).split(" | ")
    found += [f"list[{word}]" for word in found if word in ("Tensor", "int", "float")]
    return " | ".join(dict.fromkeys([*found, "None"]))
