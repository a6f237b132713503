"""Parametrizations of leaf modules (torch.nn.utils.parametrizations) as options.

A parametrized Conv1d is a Conv1d whose weight is computed from other tensors. On the wire it is its
base class with an option `parametrizations`: for each tensor, the type of parametrization (one of
torch's own) and its arguments.
"""

# ruff: noqa: SLF001 - the classes of torch's parametrizations are private

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lazyfx.errors import DecodeError, UnsupportedGraphError

OPTION = "parametrizations"

_READERS: dict[type[nn.Module], tuple[str, Callable[[Any], dict[str, Any]]]] = {
    parametrizations._WeightNorm: ("weight_norm", lambda made: {"dim": made.dim}),
    parametrizations._SpectralNorm: (
        "spectral_norm",
        lambda made: {
            "dim": getattr(made, "dim", 0),
            "eps": made.eps,
            "n_power_iterations": getattr(made, "n_power_iterations", 1),
        },
    ),
}
_APPLY: dict[str, tuple[Callable[..., Any], frozenset[str]]] = {
    "weight_norm": (parametrizations.weight_norm, frozenset({"dim"})),
    "spectral_norm": (
        parametrizations.spectral_norm,
        frozenset({"dim", "eps", "n_power_iterations"}),
    ),
}
_MAX_ITERATIONS = 64


def base_class(module: nn.Module) -> type[nn.Module]:
    """The class of a module before it was parametrized."""
    cls = type(module)
    return cls.__mro__[1] if parametrize.is_parametrized(module) else cls


def computes(holder: object, name: str) -> bool:
    """Whether an attribute of a module is computed from other tensors at each read."""
    return isinstance(holder, nn.Module) and parametrize.is_parametrized(holder, name)


def read(module: nn.Module) -> dict[str, Any]:
    """The parametrizations of a module's tensors, by tensor name.

    Raises:
        UnsupportedGraphError: A parametrization that is not one of torch's norms, or several.
    """
    found = {}
    lists: Any = module.parametrizations
    for name in sorted(lists):
        chain = list(lists[name])
        reader = _READERS.get(type(chain[0])) if len(chain) == 1 else None
        if reader is None:
            raise UnsupportedGraphError(
                f"a {base_class(module).__name__} whose {name!r} is parametrized by "
                + ", ".join(type(part).__name__ for part in chain),
                remedy="use weight_norm or spectral_norm, or remove the parametrization "
                "(torch.nn.utils.parametrize.remove_parametrizations)",
            )
        kind, arguments = reader
        found[name] = {"options": arguments(chain[0]), "type": kind}
    return found


def apply(module: nn.Module, given: Mapping[str, Any]) -> None:
    """Parametrize the tensors of a module, as described by `read`.

    Raises:
        DecodeError: No such parametrization, no such tensor, or invalid arguments.
    """
    field = f"module.options.{OPTION}"
    for name, row in given.items():
        if not isinstance(row, Mapping) or set(row) != {"options", "type"}:
            raise DecodeError("not a type and options", field=field)
        known = _APPLY.get(row["type"]) if isinstance(row["type"], str) else None
        arguments = row["options"]
        if known is None or not isinstance(arguments, Mapping) or set(arguments) != known[1]:
            raise DecodeError(f"{str(row['type'])[:100]!r} with these options", field=field)
        if name not in module._parameters:
            raise DecodeError(f"the module has no tensor {str(name)[:100]!r}", field=field)
        if not 0 <= arguments.get("n_power_iterations", 1) <= _MAX_ITERATIONS:
            raise DecodeError(f"at most {_MAX_ITERATIONS} power iterations", field=field)
        known[0](module, name, **arguments)
