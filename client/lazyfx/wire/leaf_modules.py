"""Leaf modules of torch.nn <-> class name, constructor options and tensors."""
# ruff: noqa: SLF001 - parameters that are None are only seen in nn.Module's own tables

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.wire.convention import has_own_call

# Where tensors are made and what they start from is not configuration.
_NOT_OPTIONS = frozenset(
    {"self", "device", "dtype", "_weight", "_freeze", "size_average", "reduce"}
)
# Old spellings of options that have another one.
_OLD_OPTIONS = {"Hardtanh": {"min_value", "max_value"}}
_CONTAINERS = frozenset(
    {"Container", "Module", "ModuleDict", "ModuleList", "ParameterDict", "ParameterList"}
    | {"RNNBase", "RNNCellBase", "Sequential"}
)
_INTERNALS = frozenset(vars(nn.Module()))
_REMEDY = "trace through the module (torch.fx.Tracer.is_leaf_module), or use torch.export"
_LOSS_TENSORS = frozenset({"weight", "pos_weight"})

Read = Callable[[Any], Any]


def _has(attribute: str) -> Read:
    return lambda module: getattr(module, attribute, None) is not None


# Options that say how many parts a constructor makes, and most parts that are made.
_COUNTS = frozenset({"num_layers", "num_encoder_layers", "num_decoder_layers"})
_MOST_PARTS = 256
# Options that are kept under another name, or only as the presence of a tensor.
_SPECIALS: dict[tuple[str, str], Read] = {
    ("AdaptiveLogSoftmaxWithLoss", "cutoffs"): lambda module: list(module.cutoffs[:-1]),
    ("AdaptiveLogSoftmaxWithLoss", "head_bias"): lambda module: module.head.bias is not None,
    ("MultiheadAttention", "bias"): _has("in_proj_bias"),
    ("MultiheadAttention", "add_bias_kv"): _has("bias_k"),
    ("PairwiseDistance", "p"): lambda module: module.norm,
    ("PReLU", "init"): lambda _: 0.25,
    ("RNN", "nonlinearity"): lambda module: "tanh" if module.mode == "RNN_TANH" else "relu",
}
_TRANSFORMER_LAYER: dict[str, Read] = {
    "d_model": lambda module: module.linear1.in_features,
    "nhead": lambda module: module.self_attn.num_heads,
    "dim_feedforward": lambda module: module.linear1.out_features,
    "dropout": lambda module: module.dropout.p,
    "layer_norm_eps": lambda module: module.norm1.eps,
    "batch_first": lambda module: module.self_attn.batch_first,
    "bias": lambda module: module.linear1.bias is not None,
}
for _layer in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
    _SPECIALS.update({(_layer, name): read for name, read in _TRANSFORMER_LAYER.items()})


def type_name(module: nn.Module) -> str:
    """Name of the torch.nn class of a leaf module.

    Raises:
        UnsupportedGraphError: It is not exactly a leaf class of torch.nn, it or a
            part of it carries hooks or a forward of its own, or its parts are not all in
            one mode.
    """
    cls = type(module)
    if classes().get(cls.__name__) is not cls:
        remedy = _REMEDY
        if cls.__name__ == "GuardsFn":
            remedy = "take the module with ExportedProgram.module(check_guards=False)"
        raise UnsupportedGraphError(
            f"a call of the module class {cls.__module__}.{cls.__qualname__}", remedy=remedy
        )
    for child in module.modules():
        if has_own_call(child):
            raise UnsupportedGraphError(
                f"a {cls.__name__} with hooks or methods of its own",
                remedy="remove the hooks before tracing",
            )
        if child.training != module.training:
            raise UnsupportedGraphError(
                f"a {cls.__name__} with parts in another mode",
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
    """Constructor arguments that make a module configured like this one, sorted by name.

    Raises:
        UnsupportedGraphError: An argument cannot be read back from the module.
    """
    cls = type(module)
    found: dict[str, Any] = {}
    for name in _option_names(cls.__name__):
        special = _SPECIALS.get((cls.__name__, name))
        if special is not None:
            found[name] = special(module)
        elif name == "bias" and "bias" in module._parameters:
            found[name] = module._parameters["bias"] is not None
        elif name in _LOSS_TENSORS and name in module._buffers:
            continue
        else:
            value = getattr(module, name, module)
            if isinstance(value, (torch.Tensor, nn.Module)):
                raise UnsupportedGraphError(
                    f"the argument {name!r} of a {cls.__name__} cannot be read back",
                    remedy=_REMEDY,
                )
            found[name] = value
    return found


def verify(module: nn.Module, arguments: Mapping[str, Any]) -> None:
    """Check that a module made from `arguments` is configured like `module` in every part.

    Raises:
        UnsupportedGraphError: Attributes were changed after the module was made.
    """
    try:
        fresh = prototype(type(module).__name__, arguments)
    except DecodeError as error:
        raise UnsupportedGraphError(str(error), remedy=_REMEDY) from None
    made = dict(fresh.named_modules(remove_duplicate=False))
    for path, part in module.named_modules(remove_duplicate=False):
        twin = made.pop(path, None)
        if type(twin) is not type(part) or not _are_alike(twin, part):
            raise UnsupportedGraphError(
                f"a {type(module).__name__} that was changed after it was made", remedy=_REMEDY
            )
    if made:
        raise UnsupportedGraphError(f"a {type(module).__name__} that lacks {min(made)!r}")


def _are_alike(made: nn.Module, module: nn.Module) -> bool:
    """Whether a module has the settings that its constructor would give it, and its tensors.

    Private settings count as far as the constructor makes them (`_reversed_padding_repeated_twice`
    of a convolution); others are marks that libraries leave on modules.
    """
    return (
        _settings(made, vars(made)) == _settings(module, vars(made))
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


@lru_cache(maxsize=512)
def _option_names(name: str) -> tuple[str, ...]:
    cls = classes()[name]
    if cls.__init__ is nn.Module.__init__ or cls is nn.Identity:
        return ()
    names = set(inspect.signature(cls).parameters)
    if issubclass(cls, nn.RNNBase):
        names = set(inspect.signature(nn.RNNBase).parameters) - {"mode"}
        names -= set() if cls is nn.LSTM else {"proj_size"}
        names |= {"nonlinearity"} if cls is nn.RNN else set()
    elif names & {"args", "kwargs"}:
        names = set(inspect.signature(cls.__mro__[1]).parameters)
    return tuple(sorted(names - _NOT_OPTIONS - _OLD_OPTIONS.get(name, set())))


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
        arguments: Constructor arguments as `options` gives them.

    Raises:
        DecodeError: No such leaf class, or arguments that do not fit it.
    """
    cls = classes().get(name)
    if cls is None:
        raise DecodeError(f"{name[:100]!r} is not a leaf class of torch.nn", field="module.type")
    unknown = set(arguments) - set(_option_names(name))
    if unknown:
        raise DecodeError(f"{name} takes no option {min(unknown)!r}", field="module.options")
    for option in _COUNTS.intersection(arguments):
        count = arguments[option]
        if type(count) is not int or count > _MOST_PARTS:
            raise DecodeError(f"{name}: at most {_MOST_PARTS} {option}", field="module.options")
    try:
        with torch.device("meta"):
            return cls(**arguments)
    except Exception as error:  # noqa: BLE001 - constructors raise what they like
        raise DecodeError(f"{name}: {error}", field="module.options") from None


def build(template: nn.Module, values: Mapping[str, torch.Tensor], *, training: bool) -> nn.Module:
    """Copy a prototype and put tensors in.

    Args:
        template: What `prototype` made; it is not changed.
        values: Tensors as `tensors` gives them.
        training: The mode that the module is in.

    Raises:
        DecodeError: Tensors that do not fit the module.
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
                if current is not None and current.shape != value.shape:
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
    """A module of the same class that shares nothing that can be changed but its tensors."""
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
