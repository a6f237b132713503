"""User-defined targets in the allow-table, from a file of exact names.

    {"functions": {"shop.norms.fused_norm": "(x: Tensor, eps: float = ...)"},
     "methods": {"pin_memory": "(self: Self)"}}

The same file serves both sides: `lazyfx serve --allow-targets FILE`, and
`lazyfx.allow_targets(FILE)` in the client process.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lazyfx.shared.wire.targets import added_targets, allow_table

_MAX_CHARACTERS = 100_000
_SECTIONS = frozenset({"functions", "methods"})
_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)


@dataclass(frozen=True)
class UserTargets:
    """Parsed and resolved targets.

    Attributes:
        functions: Callables by name.
        methods: Names of Tensor methods.
        signatures: Their signatures by name.
        text: The file.
    """

    functions: Mapping[str, Callable[..., Any]]
    methods: frozenset[str]
    signatures: Mapping[str, str]
    text: str


def allow_targets(path: str | Path) -> None:
    """Let graphs of this process call the targets of a file; the server needs the same file.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is malformed, or names a target that graphs must not call; the error names
            it.
    """
    install(parse(Path(path).read_text("utf-8")))


def install(user_targets: UserTargets) -> None:
    """Add targets to the allow-table of this process, replacing those added before."""
    added_targets.FUNCTIONS.clear()
    added_targets.FUNCTIONS.update(user_targets.functions)
    added_targets.METHODS.clear()
    added_targets.METHODS.update(user_targets.methods)
    allow_table.clear_caches()


def parse(text: str) -> UserTargets:
    """Parse the text of a file and resolve its names.

    Modules that it names are imported: the author of the file decides what code is loaded.

    Raises:
        ValueError: It is malformed, or names a target that graphs must not call; the error names
            it.
    """
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"has {len(text)} characters; at most {_MAX_CHARACTERS} are allowed")
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not JSON: {error}") from None
    if not isinstance(table, dict) or not table.keys() <= _SECTIONS:
        raise ValueError('must be an object with "functions" and "methods"')
    rows: dict[str, dict[str, str]] = {}
    for section in sorted(_SECTIONS):
        found = table.get(section, {})
        if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
            raise ValueError(f"{section}: must be an object that maps names to signatures")
        rows[section] = found
    return UserTargets(
        {name: _function(name) for name in rows["functions"]},
        frozenset(_method(name) for name in rows["methods"]),
        {**rows["functions"], **rows["methods"]},
        text,
    )


def _function(name: str) -> Callable[..., Any]:
    """The function with an exact name, which must be a direct attribute of its module."""
    if not _PATH.fullmatch(name) or "__" in name:
        raise ValueError(
            f"functions: {name[:200]!r} is not a dotted name, or has a double underscore"
        )
    if name in allow_table.functions():
        raise ValueError(f"functions: {name} is already in the table")
    home, _, own = name.rpartition(".")
    if home.partition(".")[0] in sys.stdlib_module_names:
        raise ValueError(
            f"functions: {name} belongs to Python's standard library, which graphs must not call"
        )
    try:
        module = importlib.import_module(home)
    except ImportError as error:
        raise ValueError(f"functions: {name}: {home} is not a module ({error})") from None
    value = vars(module).get(own)
    where = (getattr(value, "__module__", None), getattr(value, "__qualname__", None))
    if not callable(value) or where != (home, own):
        raise ValueError(
            f"functions: {name} is not a function that {home} defines; name it where it is defined"
        )
    function: Callable[..., Any] = value
    return function


def _method(name: str) -> str:
    if not name.isidentifier() or name.startswith("_") or "__" in name:
        raise ValueError(f"methods: {name[:200]!r} is not a public name")
    if name not in dir(torch.Tensor) or not callable(getattr(torch.Tensor, name)):
        raise ValueError(f"methods: Tensor has no method {name!r}")
    if name in allow_table.methods():
        raise ValueError(f"methods: {name} is already in the table")
    return name
