"""Loads the models of commands."""

from __future__ import annotations

import importlib
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch.fx import GraphModule, symbolic_trace

from lazyfx.capture.capturing import Compilable, ExampleInputs
from lazyfx.capture.saved_graphs import load_graph
from lazyfx.cli.common_options import GRAPH_SUFFIXES
from lazyfx.cli.failing import one_line
from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_specs import PassSpec, replace_pattern

Model: TypeAlias = "tuple[Compilable, ExampleInputs]"

_REPLACE = "replace_pattern"
_EXAMPLE = re.compile(r"(?:(?P<name>[A-Za-z_]\w*)=)?(?P<dtype>[a-z]+[0-9]*)\[(?P<dims>[0-9, ]*)\]")


def load_model(path: Path) -> Compilable:
    """Read a .pt2 file, which may run code that it contains, or a saved graph, which does not.

    Raises:
        LazyfxError: It is not a graph that can be read here.
        OSError: It cannot be read.
    """
    return load_graph(path) if path.suffix in GRAPH_SUFFIXES else load_program(path)


def load_program(path: Path) -> torch.export.ExportedProgram:
    """Read a .pt2 file. This may run code that it contains.

    Raises:
        LazyfxError: It is not an exported program that this torch can read.
    """
    try:
        with warnings.catch_warnings(), _quiet(logging.getLogger("torch.export")):
            warnings.simplefilter("ignore")
            # The user's own file on their own machine; a server never reads one.
            return torch.export.load(path)
    except Exception as error:  # torch.export.load raises errors of every kind
        raise LazyfxError(
            f"{path} is not an exported program that torch {torch.__version__} can read: "
            f"{one_line(error)}; write it with torch.export.save"
        ) from error


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Suppress the traceback that torch logs before it raises."""
    before = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(before)


def call_factory(spelling: str, examples: ExampleInputs) -> Model:
    """Import `package.module:factory` and call the factory.

    Args:
        spelling: Modules in the current folder are found too.
        examples: Inputs that replace the factory's, if it returns any.

    Returns:
        The model and its example inputs.

    Raises:
        LazyfxError: It cannot be imported, raises, or returns something else.
    """
    try:
        made = _imported(spelling)()
    except Exception as error:  # the user's own code, which may raise anything
        raise LazyfxError(
            f"{spelling}: {type(error).__name__}: {one_line(error)}; give the import path of a "
            "function without arguments that returns (module, example_inputs)"
        ) from error
    what, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(what, (torch.nn.Module, torch.export.ExportedProgram)):
        raise LazyfxError(
            f"{spelling} returned a {type(made).__name__}; it must return (module, example_inputs)"
        )
    return what, own if examples is None else examples


def read_examples(spellings: Sequence[str]) -> ExampleInputs:
    """Parse --example: `int64[2,8]` for a positional input, `input_ids=int64[2,8]` for a keyword.

    Returns:
        Tensors in order, or by keyword; None if there are none.

    Raises:
        LazyfxError: One is malformed, or both forms are mixed.
    """
    positional: list[torch.Tensor] = []
    named: dict[str, torch.Tensor] = {}
    for spelling in spellings:
        found = _EXAMPLE.fullmatch(spelling.strip())
        dtype = getattr(torch, found["dtype"], None) if found else None
        if not found or not isinstance(dtype, torch.dtype):
            raise LazyfxError(
                f"{spelling!r} is not DTYPE[SIZES] or NAME=DTYPE[SIZES], e.g. float32[2,8]"
            )
        dims = [int(size) for size in found["dims"].split(",") if size.strip()]
        tensor = _tensor(dtype, dims)
        if found["name"]:
            named[found["name"]] = tensor
        else:
            positional.append(tensor)
    if positional and named:
        raise LazyfxError("pass all inputs positionally, or all by keyword")
    return named or tuple(positional) or None


def add_rewrites(passes: Sequence[PassSpec], spellings: Sequence[str]) -> list[PassSpec]:
    """Import rewrites (`package.module:name`) and add them to the replace_pattern pass.

    Args:
        passes: Passes, with one replace_pattern if there are rewrites.
        spellings: Each names a pair (pattern, replacement) of functions or GraphModules.

    Raises:
        LazyfxError: One cannot be imported or traced or is not a pair, or there is not exactly one
            replace_pattern.
    """
    if not spellings:
        return list(passes)
    if sum(spec.name == _REPLACE for spec in passes) != 1:
        raise LazyfxError(f"--rewrite requires exactly one {_REPLACE} in --passes")
    filled = replace_pattern(*(_rewrite(spelling) for spelling in spellings))
    return [
        replace(spec, rewrites=filled.rewrites) if spec.name == _REPLACE else spec
        for spec in passes
    ]


def _rewrite(spelling: str) -> tuple[GraphModule, GraphModule]:
    try:
        pattern, replacement = (
            side if isinstance(side, GraphModule) else symbolic_trace(side)
            for side in _imported(spelling)
        )
    except Exception as error:  # the user's own code, which may raise anything
        raise LazyfxError(
            f"--rewrite {spelling}: {type(error).__name__}: {one_line(error)}; give the import "
            "path of a pair (pattern, replacement) of functions that torch.fx can trace"
        ) from error
    return pattern, replacement


def _imported(spelling: str) -> Any:
    """Import `package.module:name`; modules in the current folder are found too."""
    module_name, _, attribute = spelling.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        found = getattr(found, part)
    return found


def _tensor(dtype: torch.dtype, dims: list[int]) -> torch.Tensor:
    # Zeros are valid indices; for other inputs random values are more telling.
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(dims).to(dtype)
    return torch.zeros(dims, dtype=dtype)
