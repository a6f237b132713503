"""Collects the signatures of the installed torch, for review.

Sources, in this order: hand-written ones (`reviewed`), torch's stub files, the schemas of operators
with the same name as a builtin, and the annotations of Python functions.
"""

# ruff: noqa: SLF001 - torch's builtins are in private modules

from __future__ import annotations

import ast
import functools
import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from lazyfx.shared.wire.targets import allow_table
from lazyfx.shared.wire.targets.numpy_wrappers import tensors as _tensors
from lazyfx_server.security.signatures import reviewed
from lazyfx_server.security.signatures.annotations import of_python, of_stub
from lazyfx_server.security.signatures.kinds import written_type

_NUMPY = "torch._numpy."
_NUMPY_METHOD = "torch._numpy.ndarray."
# Parameters that the Python bindings add to those of a schema.
_OPTIONS = {"out": "Tensor | list[Tensor] | None", "requires_grad": "bool"}


def functions(names: Iterable[str]) -> dict[str, list[str]]:
    """The signatures of functions by name; an empty list if none was found."""
    table = allow_table.functions()
    found: dict[str, list[str]] = {}
    for name in names:
        by_hand = reviewed.FUNCTIONS.get(name)
        found[name] = [by_hand] if by_hand else _distinct(_of_function(name, table[name]))
    return found


def methods(names: Iterable[str]) -> dict[str, list[str]]:
    """The signatures of methods by name."""
    return {name: _distinct([*_of_method(name), *_by_hand(name)]) for name in names}


def higher_order(names: Iterable[str]) -> dict[str, list[str]]:
    """The signatures of higher-order operators by name."""
    return {name: [reviewed.HIGHER_ORDER[name]] for name in names if name in reviewed.HIGHER_ORDER}


def _by_hand(method: str) -> list[str]:
    return [reviewed.METHODS[method]] if method in reviewed.METHODS else []


def _distinct(found: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(found))


def _of_function(name: str, function: Any) -> list[str]:
    base = name.rpartition(".")[2]
    if name.startswith(_NUMPY_METHOD):
        method = _of_python_function(getattr(_tensors.ndarray, base))
        # Most methods wrap the function of the same name.
        return method or _of_python_function(getattr(_tensors, base))
    if name.startswith(_NUMPY):
        return _of_python_function(function.f)
    if name.startswith("torch.Tensor."):
        return [*_of_method(base), *_by_hand(base)]
    if name.startswith("torch.nn.functional.") and inspect.isfunction(function):
        stubs = _stubs("nn/functional.pyi").get(base, [])
        return [*stubs, *_of_python_function(function)]
    if inspect.isfunction(function):
        return _of_python_function(function)
    return _of_builtin(function)


def _of_method(name: str) -> list[str]:
    if name in reviewed.NARROWED:
        return []
    found = list(_stubs("_C/__init__.pyi", "TensorBase").get(name, []))
    value = getattr(torch.Tensor, name, None)
    if inspect.isfunction(value):
        # A wrapper around another method: torch's stub and our list have its signature.
        found += _of_python_function(value)
    elif not found and name not in reviewed.METHODS:
        found += _of_operator(name, "self")
    return found


def _of_python_function(function: Callable[..., Any]) -> list[str]:
    dispatched = _dispatched(function)
    if dispatched:
        return [of_python(choice) for choice in dispatched]
    try:
        signature = of_python(function)
    except ValueError:  # a wrapper of a builtin, which has no signature
        return []
    return [] if signature == "(*args: Any, **kwargs: Any)" else [signature]


def _dispatched(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """The functions that torch's `boolean_dispatch` chooses from, or that NumPy methods call."""
    inside = inspect.getclosurevars(function).nonlocals if inspect.isfunction(function) else {}
    choices = [inside[name] for name in ("if_true", "if_false") if name in inside]
    if not choices and "func" in inside and inspect.isfunction(inside["func"]):
        choices = [inside["func"]]
    return choices


def _of_builtin(function: Any) -> list[str]:
    name = getattr(function, "__name__", "")
    for home, file in (
        (torch._C._VariableFunctions, "_C/_VariableFunctions.pyi"),
        (torch._C._nn, "_C/_nn.pyi"),
    ):
        if getattr(home, name, None) == function and name in _stubs(file):
            return _stubs(file)[name]
    return _of_operator(name, "input")


def _of_operator(name: str, first: str) -> list[str]:
    packet = getattr(torch.ops.aten, name, None)
    if packet is None:
        return []
    schemas = [getattr(packet, overload)._schema for overload in packet.overloads()]
    return [_written(schema, first) for schema in schemas]


def _written(schema: torch.FunctionSchema, first: str) -> str:
    """A schema as the signature of its Python binding."""
    words: list[str] = []
    seen = set()
    for argument in schema.arguments:
        name = {"self": first, "from": "from_"}.get(argument.name, argument.name)
        if argument.kwarg_only and "*" not in words:
            words.append("*")
        own = "Self" if name == "self" else written_type(str(argument.real_type)) or "Any"
        own = own.replace("int | Enum", "int")
        default = " = ..." if argument.has_default_value() else ""
        words.append(f"{name}: {own}{default}")
        seen.add(name)
    if "*" not in words:
        words.append("*")
    extras = [f"{name}: {kind} = ..." for name, kind in _OPTIONS.items() if name not in seen]
    return f"({', '.join(words + extras)})"


@functools.lru_cache(maxsize=8)
def _stubs(file: str, class_name: str = "") -> dict[str, list[str]]:
    """The signatures in one of torch's stub files, by name."""
    tree = ast.parse(Path(torch.__file__).parent.joinpath(file).read_text("utf-8"))
    body = tree.body
    if class_name:
        body = next(
            part.body for part in body if isinstance(part, ast.ClassDef) and part.name == class_name
        )
    found: defaultdict[str, list[str]] = defaultdict(list)
    for part in body:
        if isinstance(part, ast.FunctionDef):
            found[part.name].append(of_stub(part))
    return found
