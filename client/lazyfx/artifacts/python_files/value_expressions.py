"""Values as Python expressions that need only torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.utils import _pytree as pytree
from torch.utils._pytree import TreeSpec

from lazyfx.artifacts.python_files.graph_state import LeafSpec
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.leaf_modules import leaf_parametrizations

REMEDY = "save_pickle, or print the code alone: RemoteModule.code, --emit code -o -"
# torch.nn has more such classes; their containers are recognized by their contents.
_PART = frozenset({"options", "type"})
_NAMED_BY_TORCH = (torch.dtype, torch.layout, torch.memory_format)
_STANDARD = frozenset(
    cls.__name__ for cls in (tuple, list, dict, type(None), torch.Size)
) | {"OrderedDict", "defaultdict", "deque"}  # fmt: skip


def literal(value: Any, where: str) -> str:
    """A value as an expression.

    Args:
        value: Numbers, strings, torch types, and tuples, lists and dicts of them.
        where: What it belongs to, for error messages.

    Raises:
        UnsupportedGraphError: It is something else.
    """
    if isinstance(value, torch.Size):
        return f"torch.Size({list(value)!r})"
    if type(value) is tuple:
        return f"({''.join(f'{literal(item, where)}, ' for item in value)})"
    if type(value) is list:
        return f"[{', '.join(literal(item, where) for item in value)}]"
    if type(value) is dict:
        rows = (f"{literal(k, where)}: {literal(v, where)}" for k, v in value.items())
        return f"{{{', '.join(rows)}}}"
    if type(value) is float and not math.isfinite(value):
        return f"float({str(value)!r})"
    if type(value) is complex:
        return f"complex({literal(value.real, where)}, {literal(value.imag, where)})"
    if value is None or value is ... or type(value) in (bool, int, float, str):
        return repr(value)
    if isinstance(value, _NAMED_BY_TORCH):
        return str(value)
    if isinstance(value, torch.device):
        return f"torch.device({str(value)!r})"
    if isinstance(value, TreeSpec):
        return spec(value)
    raise UnsupportedGraphError(
        f"{where}: a {type(value).__name__} cannot be written as Python", remedy=REMEDY
    )


def constructor(leaf: LeafSpec, where: str) -> str:
    """The constructor call of a leaf module.

    Raises:
        UnsupportedGraphError: It has parametrizations, or an option that cannot be written.
    """
    if leaf_parametrizations.OPTION in leaf.options:
        raise UnsupportedGraphError(
            f"{where}: a {leaf.type} with parametrizations cannot be written as Python",
            remedy="save_exported_program, or print the code alone: --emit code -o -",
        )
    return _call(leaf.type, leaf.options, where)


def _call(name: str, options: Mapping[str, Any], where: str) -> str:
    given = []
    for option, value in options.items():
        if isinstance(value, Mapping) and value.keys() == _PART:
            text = _call(value["type"], value["options"], where)
        else:
            text = literal(value, where)
        given.append(f"{option}={text}")
    return f"torch.nn.{name}({', '.join(given)})"


def spec(structure: TreeSpec, *, result: bool = False) -> str:
    """A pytree structure as an expression.

    Args:
        structure: The structure.
        result: It is the structure of a result: dict-like classes become dicts, and named tuples
            tuples.

    Raises:
        UnsupportedGraphError: A type in it is defined by another library.
    """
    plain = _plain(structure) if result else structure
    for part in _parts(plain):
        if not part.is_leaf() and part.type.__name__ not in _STANDARD:
            raise UnsupportedGraphError(
                f"the model {'returns' if result else 'takes'} a {part.type.__name__}, which is "
                f"not a torch type",
                remedy=REMEDY,
            )
    try:
        text = pytree.treespec_dumps(plain)
    except (NotImplementedError, TypeError, ValueError) as error:  # torch refuses to serialize it
        raise UnsupportedGraphError(
            f"the structure of what the model {'returns' if result else 'takes'} cannot be written "
            f"as text: {error}",
            remedy=REMEDY,
        ) from error
    return f"_pytree.treespec_loads({text!r})"


def _plain(structure: TreeSpec) -> TreeSpec:
    if structure.is_leaf():
        return structure
    children = [_plain(child) for child in structure.children()]
    kind = structure.type
    if kind.__name__ in _STANDARD or not isinstance(kind, type):
        return TreeSpec(kind, structure.context, children)
    if issubclass(kind, Mapping) and isinstance(structure.context, (list, tuple)):
        return TreeSpec(dict, list(structure.context), children)
    return TreeSpec(tuple, None, children) if issubclass(kind, tuple) else structure


def _parts(structure: TreeSpec) -> list[TreeSpec]:
    return [structure, *(part for child in structure.children() for part in _parts(child))]
