"""Signatures of callables: names, positions and types of their parameters.

Operators have torch's schemas. Callables without a schema (functions of torch and of Python, Tensor
methods) have a reviewed signature in `allowed/signatures.json`, written as in a stub file: "(input:
Tensor, dim: int | None = ..., *, out: Tensor | None = ...)".
"""

from __future__ import annotations

import ast
import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lazyfx.v1 import graph_pb2
from lazyfx_server.security.signatures.kinds import Fits, fits_type, written_type

# torch accepts NumPy's names for some of its parameters.
_NUMPY_NAMES = {
    "dim": ("axis",),
    "keepdim": ("keepdims",),
    "input": ("x", "a", "x1"),
    "other": ("x2",),
}


@dataclass(frozen=True)
class Signature:
    """The signature of one overload of a callable.

    Attributes:
        places: Parameters that may be positional, in order.
        fits: A check of each parameter's type, by name.
        by_name: Parameters that may be passed by keyword.
        required: Parameters without a default.
        rest: The check for `*args`, if there is one.
        others: The check for `**kwargs`, if there is one.
    """

    places: tuple[str, ...]
    fits: Mapping[str, Fits]
    by_name: frozenset[str]
    required: frozenset[str]
    rest: Fits | None = None
    others: Fits | None = None

    def mismatch_reason(self, call: graph_pb2.Call, strings: Sequence[str]) -> str | None:
        """Why a call does not match, if so."""
        by_place, extra = call.args[: len(self.places)], call.args[len(self.places) :]
        if extra and self.rest is None:
            return f"are {len(call.args)}, but it takes at most {len(self.places)} positional ones"
        given = dict(zip(self.places, by_place, strict=False))
        for argument in extra:
            if self.rest is not None and not self.rest(argument, strings):
                return (
                    f"include {_kind(argument)} as a positional argument, which it does not accept"
                )
        for row in call.kwargs:
            name = self._own_name(strings[row.name])
            if name in self.by_name:
                if name in given:
                    return f"give {name!r} twice"
                given[name] = row.value
            elif self.others is None:
                return f"include the keyword {strings[row.name][:100]!r}, which it does not accept"
            elif not self.others(row.value, strings):
                return f"give {name[:100]!r} as {_kind(row.value)}, which it does not accept"
        if missing := self.required - given.keys():
            return f"lack {', '.join(sorted(missing))}"
        for name, argument in given.items():
            if not self.fits[name](argument, strings):
                return f"give {name!r} as {_kind(argument)}, which it does not accept"
        return None

    def given(self, call: graph_pb2.Call, strings: Sequence[str]) -> dict[str, graph_pb2.Argument]:
        """The arguments of a call by the names that they have here."""
        by_place = dict(zip(self.places, call.args, strict=False))
        return by_place | {self._own_name(strings[row.name]): row.value for row in call.kwargs}

    def _own_name(self, name: str) -> str:
        if name in self.by_name:
            return name
        for own, others in _NUMPY_NAMES.items():
            if name in others and own in self.by_name:
                return own
        return name


def _kind(argument: graph_pb2.Argument) -> str:
    return str(argument.WhichOneof("kind"))


def of_schema(schema: torch.FunctionSchema) -> Signature:
    """The signature of an operator's overload."""
    arguments = schema.arguments
    fits = {}
    for argument in arguments:
        written = written_type(str(argument.real_type))
        # A type of another library: only torch can check it.
        fits[argument.name] = fits_type(written) if written else _fits_whatever
    return Signature(
        places=tuple(a.name for a in arguments if not a.kwarg_only),
        fits=fits,
        by_name=frozenset(fits),
        required=frozenset(a.name for a in arguments if not a.has_default_value()),
    )


def _fits_whatever(_argument: graph_pb2.Argument, _strings: Sequence[str]) -> bool:
    return True


@functools.lru_cache(maxsize=4096)
def read(written: str) -> Signature:
    """Parse a signature.

    Raises:
        ValueError: The text is not a signature.
    """
    try:
        (function,) = ast.parse(f"def _{written}: ...").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(f"{written[:200]!r} is not a signature") from None
    if not isinstance(function, ast.FunctionDef) or function.returns is not None:
        raise ValueError(f"{written[:200]!r} is not a signature")
    parts = function.args
    named = [*parts.posonlyargs, *parts.args, *parts.kwonlyargs]
    placed = [*parts.posonlyargs, *parts.args]
    required = {a.arg for a in placed[: len(placed) - len(parts.defaults)]} | {
        a.arg
        for a, default in zip(parts.kwonlyargs, parts.kw_defaults, strict=True)
        if default is None
    }
    return Signature(
        places=tuple(a.arg for a in placed),
        fits={a.arg: _type(a) for a in named},
        by_name=frozenset(a.arg for a in [*parts.args, *parts.kwonlyargs]),
        required=frozenset(required),
        rest=_type(parts.vararg) if parts.vararg else None,
        others=_type(parts.kwarg) if parts.kwarg else None,
    )


def _type(argument: ast.arg) -> Fits:
    if argument.annotation is None:
        raise ValueError(f"{argument.arg} has no type")
    return fits_type(ast.unparse(argument.annotation))
