"""Leaf modules of torch.nn <-> class name, constructor options and tensors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from lazyfx.errors import DecodeError, UnsupportedGraphError

# Where tensors are made and what they start from is not configuration.
_NOT_OPTIONS = frozenset(
    {"self", "device", "dtype", "_weight", "_freeze", "size_average", "reduce"}
)
_REMEDY = "trace through the module (torch.fx.Tracer.is_leaf_module), or use torch.export"


def _present(attribute: str) -> Callable[[nn.Module], bool]:
    return lambda module: getattr(module, attribute, None) is not None


# Options that are kept under another name, or only as the presence of a tensor.
_SPECIALS: dict[tuple[str, str], Callable[[nn.Module], Any]] = {
    ("MultiheadAttention", "bias"): _present("in_proj_bias"),
    ("MultiheadAttention", "add_bias_kv"): _present("bias_k"),
    ("GRUCell", "bias"): lambda module: module.bias,
    ("LSTMCell", "bias"): lambda module: module.bias,
    ("RNNCell", "bias"): lambda module: module.bias,
    ("GRU", "bias"): lambda module: module.bias,
    ("LSTM", "bias"): lambda module: module.bias,
    ("RNN", "bias"): lambda module: module.bias,
    ("RNN", "nonlinearity"): lambda module: "tanh" if module.mode == "RNN_TANH" else "relu",
    ("PReLU", "init"): lambda module: 0.25,
}
_LOSS_TENSORS = frozenset({"weight", "pos_weight"})


def type_name(module: nn.Module) -> str:
    """Name of the torch.nn class of a leaf module.

    Raises:
        UnsupportedGraphError: It is not exactly a class of torch.nn, or carries hooks.
    """
    cls = type(module)
    if getattr(nn, cls.__name__, None) is not cls or not _is_leaf_class(cls):
        raise UnsupportedGraphError(
            f"a call of the module class {cls.__module__}.{cls.__qualname__}", remedy=_remedy(cls)
        )
    for child in module.modules():
        if any(getattr(child, hooks, None) for hooks in _HOOKS):
            raise UnsupportedGraphError(
                f"a {cls.__name__} with hooks", remedy="remove the hooks before tracing"
            )
    return cls.__name__


_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def _remedy(cls: type) -> str:
    if cls.__name__ == "GuardsFn":
        return "take the module with ExportedProgram.module(check_guards=False)"
    return _REMEDY


def _is_leaf_class(cls: type) -> bool:
    return issubclass(cls, nn.Module) and cls.__module__.startswith("torch.nn.modules.")


def options(module: nn.Module) -> dict[str, Any]:
    """Constructor arguments that make a module configured like this one, sorted by name.

    Raises:
        UnsupportedGraphError: An argument cannot be read back from the module, or
            the module's attributes were changed after it was made.
    """
    cls = type(module)
    found: dict[str, Any] = {}
    for name in sorted(_parameters(cls)):
        special = _SPECIALS.get((cls.__name__, name))
        if special is not None:
            found[name] = special(module)
        elif name == "bias" and "bias" in module._parameters:
            found[name] = module._parameters["bias"] is not None
        elif name in _LOSS_TENSORS and name in module._buffers:
            continue
        elif hasattr(module, name) and not isinstance(
            getattr(module, name), (torch.Tensor, nn.Module)
        ):
            found[name] = getattr(module, name)
        else:
            raise UnsupportedGraphError(
                f"the argument {name!r} of a {cls.__name__} cannot be read back", remedy=_REMEDY
            )
    return found


@lru_cache(maxsize=512)
def _parameters(cls: type) -> tuple[str, ...]:
    signature = inspect.signature(cls)
    for parameter in signature.parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            return _variadic(cls)
    return tuple(name for name in signature.parameters if name not in _NOT_OPTIONS)


def _variadic(cls: type) -> tuple[str, ...]:
    if cls is nn.Identity:
        return ()
    for base in cls.__mro__[1:]:
        if issubclass(base, nn.RNNBase):
            names = inspect.signature(nn.RNNBase).parameters
            extra = {"nonlinearity"} if cls is nn.RNN else set()
            return tuple((set(names) | extra) - _NOT_OPTIONS - {"mode"})
    raise UnsupportedGraphError(f"a {cls.__name__} takes any arguments", remedy=_REMEDY)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name within the module, sorted by name."""
    found: dict[str, torch.Tensor] = {}
    for prefix, child in module.named_modules(remove_duplicate=False):
        for store in (child._parameters, child._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found[f"{prefix}.{name}" if prefix else name] = tensor
    return dict(sorted(found.items()))


def build(
    name: str,
    arguments: Mapping[str, Any],
    values: Mapping[str, torch.Tensor],
    *,
    training: bool,
) -> nn.Module:
    """Make a leaf module and put its tensors in.

    Args:
        name: Class of torch.nn.
        arguments: Constructor arguments as `options` gives them.
        values: Tensors as `tensors` gives them.
        training: The mode that the module is in.

    Raises:
        DecodeError: No such leaf class, or options or tensors that do not fit it.
    """
    cls = getattr(nn, name, None) if name in _class_names() else None
    if cls is None:
        raise DecodeError(f"{name[:100]!r} is not a leaf class of torch.nn", field="module.type")
    unknown = set(arguments) - set(_parameters(cls))
    if unknown:
        raise DecodeError(f"{name} takes no option {min(unknown)!r}", field="module.options")
    try:
        with torch.device("meta"):
            module: nn.Module = cls(**arguments)
    except (TypeError, ValueError, RuntimeError, AssertionError, AttributeError) as error:
        raise DecodeError(f"{name}: {error}", field="module.options") from None
    _fill(module, name, values)
    return module.train(training)


@lru_cache(maxsize=1)
def _class_names() -> frozenset[str]:
    return frozenset(
        name for name, cls in vars(nn).items() if isinstance(cls, type) and _is_leaf_class(cls)
    )


def _fill(module: nn.Module, name: str, values: Mapping[str, torch.Tensor]) -> None:
    left = dict(values)
    for prefix, child in module.named_modules(remove_duplicate=False):
        for store in (child._parameters, child._buffers):
            for local, current in list(store.items()):
                value = left.pop(f"{prefix}.{local}" if prefix else local, None)
                if value is None and current is None:
                    continue
                if value is None or (store is child._parameters) != isinstance(value, nn.Parameter):
                    raise DecodeError(
                        f"{name} needs a tensor {local!r} of the right role",
                        field="module.tensors",
                    )
                setattr(child, local, value)
    if left:
        raise DecodeError(f"{name} has no tensor {min(left)!r}", field="module.tensors")
