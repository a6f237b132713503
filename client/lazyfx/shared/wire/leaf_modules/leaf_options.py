"""Reads the constructor options of torch.nn's leaf classes back from modules."""

# ruff: noqa: SLF001 - parameters that are None are only seen in nn.Module's own tables

from __future__ import annotations

import dataclasses
import inspect
import operator
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from lazyfx.errors import DecodeError, UnsupportedGraphError

REMEDY = "trace through the module (torch.fx.Tracer.is_leaf_module), or use torch.export"
# Options that are themselves modules, and their allowed classes; None: any.
MODULE_OPTIONS: Mapping[str, str | None] = {
    "encoder_layer": "TransformerEncoderLayer",
    "decoder_layer": "TransformerDecoderLayer",
    "norm": None,
    "distance_function": None,
}
# Options that are objects with plain fields, by class of torch.nn.
OBJECT_OPTIONS: Mapping[tuple[str, str], str] = {
    ("LinearCrossEntropyLoss", "options"): "LinearCrossEntropyOptions"
}

# Devices and initial values of tensors are not configuration.
_NOT_OPTIONS = frozenset(
    {"self", "device", "dtype", "_weight", "_freeze", "size_average", "reduce"}
)
# Options added after torch 2.11 for which "on" is the previous behaviour: written only if off, so
# that a module has the same options, and the same digest, in every torch.
_NORMS = ("BatchNorm1d", "BatchNorm2d", "BatchNorm3d", "GroupNorm", "SyncBatchNorm")
_LATER_OPTIONS = dict.fromkeys(
    (*_NORMS, "InstanceNorm1d", "InstanceNorm2d", "InstanceNorm3d"), ("bias",)
)
# Deprecated names of options, and parts that do not belong to a leaf.
_OTHER_OPTIONS = {
    "Hardtanh": {"min_value", "max_value"},
    "Transformer": {"custom_encoder", "custom_decoder"},
}
_LOSS_TENSORS = frozenset({"weight", "pos_weight"})

Read = Callable[[Any], Any]


def _has(attribute: str) -> Read:
    return lambda module: getattr(module, attribute, None) is not None


# Options that are stored under another name, or only as the presence of a tensor.
_SPECIALS: dict[tuple[str, str], Read] = {
    ("AdaptiveLogSoftmaxWithLoss", "cutoffs"): lambda module: list(module.cutoffs[:-1]),
    ("AdaptiveLogSoftmaxWithLoss", "head_bias"): lambda module: module.head.bias is not None,
    ("LinearCrossEntropyLoss", "in_features"): lambda module: module.linear.in_features,
    ("LinearCrossEntropyLoss", "bias"): lambda module: module.linear.bias is not None,
    ("MultiheadAttention", "bias"): _has("in_proj_bias"),
    ("MultiheadAttention", "add_bias_kv"): _has("bias_k"),
    ("PairwiseDistance", "p"): lambda module: module.norm,
    ("PReLU", "init"): lambda _: 0.25,
    ("RNN", "nonlinearity"): lambda module: "tanh" if module.mode == "RNN_TANH" else "relu",
    ("TransformerEncoder", "encoder_layer"): lambda module: module.layers[0],
    ("TransformerDecoder", "decoder_layer"): lambda module: module.layers[0],
    ("Transformer", "num_encoder_layers"): lambda module: module.encoder.num_layers,
    ("Transformer", "num_decoder_layers"): lambda module: module.decoder.num_layers,
}
_TRANSFORMER_LAYER: dict[str, Read] = {
    "d_model": lambda layer: layer.linear1.in_features,
    "nhead": lambda layer: layer.self_attn.num_heads,
    "dim_feedforward": lambda layer: layer.linear1.out_features,
    "dropout": lambda layer: layer.dropout.p,
    "layer_norm_eps": lambda layer: layer.norm1.eps,
    "batch_first": lambda layer: layer.self_attn.batch_first,
    "bias": lambda layer: layer.linear1.bias is not None,
}
for _layer in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
    _SPECIALS.update({(_layer, name): read for name, read in _TRANSFORMER_LAYER.items()})


def _of_first_layer(read_option: Read) -> Read:
    return lambda module: read_option(module.encoder.layers[0])


# The settings that a Transformer passes to its layers.
_SPECIALS.update(
    {("Transformer", name): _of_first_layer(read) for name, read in _TRANSFORMER_LAYER.items()}
    | {
        ("Transformer", name): _of_first_layer(operator.attrgetter(name))
        for name in ("activation", "norm_first")
    }
)


def option_names(cls: type[nn.Module]) -> tuple[str, ...]:
    """Names of the options of a leaf class, sorted."""
    hashable: Any = cls
    return _option_names(hashable)


@lru_cache(maxsize=512)
def _option_names(cls: Any) -> tuple[str, ...]:
    if cls.__init__ is nn.Module.__init__ or cls is nn.Identity:
        return ()
    names = set(inspect.signature(cls).parameters)
    if issubclass(cls, nn.RNNBase):
        names = set(inspect.signature(nn.RNNBase).parameters) - {"mode"}
        names -= set() if cls is nn.LSTM else {"proj_size"}
        names |= {"nonlinearity"} if cls is nn.RNN else set()
    elif names & {"args", "kwargs"}:
        names = set(inspect.signature(cls.__mro__[1]).parameters)
    return tuple(sorted(names - _NOT_OPTIONS - _OTHER_OPTIONS.get(cls.__name__, set())))


def read_options(module: nn.Module, cls: type[nn.Module]) -> dict[str, Any]:
    """Constructor arguments that create a module configured like this one, sorted by name.

    Some are themselves modules (`MODULE_OPTIONS`).

    Raises:
        UnsupportedGraphError: An argument cannot be read back from the module.
    """
    found: dict[str, Any] = {}
    for name in option_names(cls):
        special = _SPECIALS.get((cls.__name__, name))
        if special is None and name in _LOSS_TENSORS and name in module._buffers:
            continue
        try:
            value = special(module) if special else _plain(module, name)
        except (AttributeError, IndexError):
            value = None if special is None else module
        if isinstance(value, torch.Tensor) or (
            isinstance(value, nn.Module) and name not in MODULE_OPTIONS
        ):
            raise UnsupportedGraphError(
                f"the argument {name!r} of a {cls.__name__} cannot be read back", remedy=REMEDY
            )
        found[name] = of_object(cls.__name__, name, value)
    for name in idle_options(cls.__name__, found):
        del found[name]
    return found


def of_object(cls: str, name: str, value: object) -> object:
    """The fields of an option that is an object; any other option itself."""
    kind: Any = getattr(nn, OBJECT_OPTIONS.get((cls, name), ""), None)
    if kind is None or type(value) is not kind:
        return value
    given: Any = value
    return {field.name: getattr(given, field.name) for field in dataclasses.fields(given)}


def to_object(cls: str, name: str, given: object) -> object:
    """The object that fields describe; any other option itself.

    Raises:
        DecodeError: It has other fields.
    """
    kind: Any = getattr(nn, OBJECT_OPTIONS.get((cls, name), ""), None)
    if kind is None or not isinstance(given, Mapping):
        return given
    if set(given) != {field.name for field in dataclasses.fields(kind)}:
        raise DecodeError(f"the option {name!r} has other fields", field="module.options")
    return kind(**given)


def idle_options(name: str, arguments: Mapping[str, Any]) -> list[str]:
    """Options that only state the behaviour of an older torch; they are omitted."""
    return [
        option
        for option in _LATER_OPTIONS.get(name, ())
        if option in arguments and (arguments[option] is True or arguments.get("affine") is False)
    ]


def _plain(module: nn.Module, name: str) -> Any:
    if name == "bias" and "bias" in module._parameters:
        return module._parameters["bias"] is not None
    if name == "bias" and parametrize.is_parametrized(module, "bias"):
        return True
    return getattr(module, name, module)
