"""Leaf modules of torch.nn <-> class name, constructor options and tensors."""
# ruff: noqa: SLF001 - parameters that are None are only seen in nn.Module's own tables

from __future__ import annotations

import warnings
import weakref
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.calling_convention import has_own_call
from lazyfx.shared.wire.leaf_modules import leaf_options, leaf_parametrizations
from lazyfx.shared.wire.leaf_modules.leaf_options import MODULE_OPTIONS, REMEDY

_CONTAINERS = frozenset(
    {"Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"}
    | {"RNNBase", "RNNCellBase", "Sequential"}
)
_INTERNALS = frozenset(vars(nn.Module()))
# Options that determine how many parts a constructor creates, and their maximum.
_COUNTS = frozenset({"num_layers", "num_encoder_layers", "num_decoder_layers"})
_MAX_PARTS = 256


def type_name(module: nn.Module) -> str:
    """Name of the torch.nn class of a leaf module.

    Raises:
        UnsupportedGraphError: It is not exactly a leaf class of torch.nn, it or a part of it has
            hooks or a custom forward, or its parts are not all in the same mode.
    """
    cls = leaf_parametrizations.base_class(module)
    if classes().get(cls.__name__) is not cls:
        remedy = REMEDY
        if cls.__name__ == "GuardsFn":
            remedy = "take the module with ExportedProgram.module(check_guards=False)"
        raise UnsupportedGraphError(
            f"a call of the module class {cls.__module__}.{cls.__qualname__}", remedy=remedy
        )
    for child in module.modules():
        if has_own_call(child):
            raise UnsupportedGraphError(
                f"a {cls.__name__} with hooks or instance methods",
                remedy="remove the hooks before tracing",
            )
        if child.training != module.training:
            raise UnsupportedGraphError(
                f"a {cls.__name__} with parts in different modes",
                remedy="call train() or eval() on the whole module",
            )
    return cls.__name__


@lru_cache(maxsize=1)
def classes() -> dict[str, type[nn.Module]]:
    """The leaf classes of torch.nn by name."""
    return {
        name: cls
        for name, cls in vars(nn).items()
        if isinstance(cls, type)
        and issubclass(cls, nn.Module)
        and cls.__module__.startswith("torch.nn.modules.")
        and name not in _CONTAINERS
        and not name.startswith("Lazy")
    }


def options(module: nn.Module) -> dict[str, Any]:
    """Constructor arguments that create a module configured like this one, sorted by name.

    An argument that is itself a leaf module becomes its type and its own options; parametrizations
    of tensors (`leaf_parametrizations`) are another option.

    Raises:
        UnsupportedGraphError: An argument cannot be read back from the module.
    """
    cls = leaf_parametrizations.base_class(module)
    found = leaf_options.read_options(module, cls)
    for name, value in found.items():
        if isinstance(value, nn.Module):
            found[name] = _part_options(name, value)
    if cls is not type(module):
        found[leaf_parametrizations.OPTION] = leaf_parametrizations.read(module)
    return dict(sorted(found.items()))


def _part_options(name: str, part: nn.Module) -> dict[str, Any]:
    inner = options(part)
    if type(part) is not leaf_parametrizations.base_class(part) or _is_deep(inner):
        raise UnsupportedGraphError(
            f"the argument {name!r} is a {type(part).__name__} with parts of its own",
            remedy=REMEDY,
        )
    return {"options": inner, "type": type_name(part)}


def _is_deep(arguments: Mapping[str, Any]) -> bool:
    """Whether a module argument itself has a module argument."""
    return any(isinstance(value, Mapping) for value in arguments.values())


def verify(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Check that a module created from `arguments` is configured like `module` in every part.

    Raises:
        UnsupportedGraphError: Attributes were changed after construction.
    """
    try:
        name = leaf_parametrizations.base_class(module).__name__
        fresh = prototype(name, arguments)
    except DecodeError as error:
        raise UnsupportedGraphError(error.reason, remedy=REMEDY) from None
    made = dict(fresh.named_modules(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        twin = made.pop(path, None)
        if twin is None or not _are_alike(twin, part):
            raise UnsupportedGraphError(
                f"a {name} that was changed after construction", remedy=REMEDY
            )
    if made:
        raise UnsupportedGraphError(f"a {name} that lacks {min(made)!r}")


def are_configured_alike(one: nn.Module, other: nn.Module) -> bool:
    """Whether two leaf modules are configured alike in every part, except for their tensors."""
    parts = dict(one.named_modules(remove_duplicate=False))
    twins = dict(other.named_modules(remove_duplicate=False))
    return parts.keys() == twins.keys() and all(
        part.training == twins[path].training and _are_alike(part, twins[path])
        for path, part in parts.items()
    )


def _are_alike(made: nn.Module, module: nn.Module) -> bool:
    """Whether a module has the settings that its constructor would set, and the same tensors.

    Private settings count only if the constructor sets them (`_reversed_padding_repeated_twice` of
    a convolution); others are marks that libraries leave on modules.
    """
    # Each parametrized module has its own new class.
    base_class = leaf_parametrizations.base_class
    return (
        base_class(made) is base_class(module)
        and _settings(made, vars(made)) == _settings(module, vars(made))
        and made._parameters.keys() == module._parameters.keys()
        and made._buffers.keys() == module._buffers.keys()
    )


def _settings(module: nn.Module, made: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (type(value), value)
        for name, value in vars(module).items()
        if (not name.startswith("_") or name in made)
        and name not in _INTERNALS
        and not isinstance(value, nn.Module)
        and not _holds_tensors(value)
    }


def _holds_tensors(value: object) -> bool:
    """Whether a value is a tensor, or a list such as the flat weights of an RNN."""
    items = value if isinstance(value, (list, tuple)) else (value,)
    return any(isinstance(item, (torch.Tensor, weakref.ref)) for item in items)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by name within the module, sorted by name."""
    found: dict[str, torch.Tensor] = {}
    for prefix, child in module.named_modules(remove_duplicate=False):
        for store in (child._parameters, child._buffers):
            for name, tensor in store.items():
                if tensor is not None:
                    found[f"{prefix}.{name}" if prefix else name] = tensor
    return dict(sorted(found.items()))


def prototype(name: str, arguments: Mapping[str, Any]) -> nn.Module:
    """A leaf module with its tensors on the meta device.

    Args:
        name: Class of torch.nn.
        arguments: Constructor arguments from `options`.

    Raises:
        DecodeError: No such leaf class, or invalid arguments.
    """
    cls = classes().get(name)
    if cls is None:
        raise DecodeError(f"{name[:100]!r} is not a leaf class of torch.nn", field="module.type")
    given = dict(arguments)
    parametrized = given.pop(leaf_parametrizations.OPTION, {})
    unknown = set(given) - set(leaf_options.option_names(cls))
    if unknown:
        raise DecodeError(f"{name} takes no option {min(unknown)!r}", field="module.options")
    if leaf_options.idle_options(name, arguments):
        raise DecodeError(f"{name} has a redundant option", field="module.options")
    for option in _COUNTS.intersection(given):
        count = given[option]
        if type(count) is not int or count > _MAX_PARTS:
            raise DecodeError(f"{name}: at most {_MAX_PARTS} {option}", field="module.options")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            # The constructor already warned when the caller's module was created.
            warnings.simplefilter("ignore")
            for option in MODULE_OPTIONS.keys() & given.keys():
                given[option] = _part(option, given[option])
            for option in given:
                given[option] = leaf_options.to_object(name, option, given[option])
            module = cls(**given)
            leaf_parametrizations.apply(module, parametrized)
            return module
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001 - constructors raise what they like
        raise DecodeError(f"{name}: {error}", field="module.options") from None


def _part(option: str, given: object) -> object:
    """The module that an option describes; the option itself if it describes none."""
    if not isinstance(given, Mapping):
        return given
    kind, inner = given.get("type"), given.get("options")
    wanted = MODULE_OPTIONS[option]
    if set(given) != {"options", "type"} or type(kind) is not str or kind != (wanted or kind):
        raise DecodeError(f"the option {option!r} is not such a module", field="module.options")
    if not isinstance(inner, Mapping) or _is_deep(inner):
        raise DecodeError(f"the option {option!r} has parts of its own", field="module.options")
    return prototype(kind, inner)


def build(template: nn.Module, values: Mapping[str, torch.Tensor], *, training: bool) -> nn.Module:
    """Copy a prototype and set its tensors.

    Args:
        template: The result of `prototype`; it is not changed.
        values: Tensors by name, as in `tensors`.
        training: The mode of the module.

    Raises:
        DecodeError: The tensors do not fit the module.
    """
    module = _copy(template)
    name = type(module).__name__
    left = dict(values)
    for prefix, child in module.named_modules(remove_duplicate=False):
        child.training = training
        for store in (child._parameters, child._buffers):
            for local, current in list(store.items()):
                value = left.pop(f"{prefix}.{local}" if prefix else local, None)
                if value is None and current is None:
                    continue
                is_parameter = isinstance(value, nn.Parameter)
                if value is None or (store is child._parameters) != is_parameter:
                    raise DecodeError(
                        f"{name} needs a tensor {local!r} of the right role",
                        field="module.tensors",
                    )
                # Loss weights are buffers without an option.
                unasked = current is None and is_parameter
                if unasked or (current is not None and current.shape != value.shape):
                    raise DecodeError(
                        f"the tensor {local!r} of {name} has the shape {tuple(value.shape)}, which "
                        "its options do not give it",
                        field="module.tensors",
                    )
                setattr(child, local, value)
    if left:
        raise DecodeError(f"{name} has no tensor {min(left)[:100]!r}", field="module.tensors")
    return module


def _copy(module: nn.Module) -> nn.Module:
    """A module of the same class that shares no mutable state except its tensors."""
    twin = module.__class__.__new__(module.__class__)
    attributes = {
        name: value.copy() if isinstance(value, (dict, list, set)) else value
        for name, value in vars(module).items()
    }
    attributes["_modules"] = {
        name: None if child is None else _copy(child) for name, child in module._modules.items()
    }
    vars(twin).update(attributes)
    return twin
