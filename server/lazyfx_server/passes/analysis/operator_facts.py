"""What torch's own tables say about a callable: random, in-place, aliasing.

Facts come from operator schemas and tags; the lists here contain only what the schemas do not say.
"""

from __future__ import annotations

import builtins
import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import BuiltinFunctionType
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from lazyfx_server.passes.analysis.walk import target_name


def words(text: str) -> frozenset[str]:
    """The words of a string: a readable way to write a long list of names."""
    return frozenset(text.split())


# Operators that may return an operand, or a view of one, although their schema has no alias.
MAY_RETURN_OPERAND = words(
    "dropout feature_dropout alpha_dropout feature_alpha_dropout dropout1d dropout2d dropout3d "
    "native_dropout type_as meshgrid broadcast_tensors atleast_1d atleast_2d atleast_3d einsum "
    "pad constant_pad_nd chain_matmul linalg_multi_dot multi_dot conj_physical sum_to_size "
    "to_dense to_mkldnn float double half bfloat16 int long short char byte bool cpu cuda "
    "as_tensor asarray from_numpy identity rrelu reshape_as view_as expand_as "
    "getitem __getitem__ data real imag T mT H mH type split_with_sizes "
    "block_diag cartesian_prod combinations tensordot interpolate upsample "
    "normalize fold unfold pixel_shuffle pixel_unshuffle to flatten unflatten "
    "lift lift_fresh _to_copy dequantize pin_memory values indices "
    "unsafe_split unsafe_split_with_sizes _unsafe_view chalf channel_shuffle histogramdd"
)

# In training these update running statistics that their schema calls plain
# operands: name -> (index of `training`, its name, indices of the statistics).
NORMALIZATIONS: dict[str, tuple[int, str, tuple[int, int]]] = {
    "native_batch_norm": (5, "training", (3, 4)),
    "cudnn_batch_norm": (5, "training", (3, 4)),
    "miopen_batch_norm": (5, "training", (3, 4)),
    "_batch_norm_impl_index": (5, "training", (3, 4)),
    "instance_norm": (5, "use_input_stats", (3, 4)),
    "batch_norm": (5, "training", (3, 4)),
}

# torch.nn.functional spells these with the statistics first.
FUNCTIONAL_NORMALIZATIONS: dict[str, tuple[int, str, bool]] = {
    "batch_norm": (5, "training", False),
    "instance_norm": (5, "use_input_stats", True),
}

# Operators whose randomness an argument can switch off:
# name -> ((index, name, default, value that switches it off), ...).
Switch = tuple[int, str, Any, Any]
_TORCH_DROPOUT: tuple[Switch, ...] = ((1, "p", 0.5, 0), (2, "train", True, False))
_F_DROPOUT: tuple[Switch, ...] = ((1, "p", 0.5, 0), (2, "training", True, False))
RANDOM_SWITCHES: dict[str, tuple[Switch, ...]] = {
    **dict.fromkeys(
        ("dropout", "native_dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
        _TORCH_DROPOUT,
    ),
    "rrelu": ((3, "training", False, False),),
    "scaled_dot_product_attention": ((4, "dropout_p", 0.0, 0),),
    "_scaled_dot_product_flash_attention": ((3, "dropout_p", 0.0, 0),),
    "_scaled_dot_product_flash_attention_for_cpu": ((3, "dropout_p", 0.0, 0),),
    "_scaled_dot_product_efficient_attention": ((5, "dropout_p", 0.0, 0),),
    "_scaled_dot_product_cudnn_attention": ((5, "dropout_p", 0.0, 0),),
}
FUNCTIONAL_RANDOM_SWITCHES: dict[str, tuple[Switch, ...]] = {
    **dict.fromkeys(
        (
            "dropout",
            "dropout1d",
            "dropout2d",
            "dropout3d",
            "alpha_dropout",
            "feature_alpha_dropout",
        ),
        _F_DROPOUT,
    ),
    "rrelu": ((3, "training", False, False),),
    "scaled_dot_product_attention": ((4, "dropout_p", 0.0, 0),),
    "multi_head_attention_forward": (
        (10, "dropout_p", 0.0, 0),
        (13, "training", True, False),
    ),
    "gumbel_softmax": (),
    "fractional_max_pool2d": (),
    "fractional_max_pool3d": (),
    "fractional_max_pool2d_with_indices": (),
    "fractional_max_pool3d_with_indices": (),
}

# torch.nn.functional activations whose `inplace` may be positional: name -> its index.
INPLACE_INDEX = {
    "relu": 1, "relu6": 1, "silu": 1, "mish": 1, "hardswish": 1, "hardsigmoid": 1, "selu": 1,
    "elu": 2, "celu": 2, "leaky_relu": 2, "threshold": 3, "hardtanh": 3, "rrelu": 4,
    "dropout": 3, "dropout1d": 3, "dropout2d": 3, "dropout3d": 3, "alpha_dropout": 3,
    "feature_alpha_dropout": 3,
}  # fmt: skip

# Operators of these namespaces communicate with other processes or with the profiler.
EFFECTFUL_NAMESPACES = words(
    "_c10d_functional _c10d_functional_autograd c10d c10d_functional _dtensor symm_mem profiler "
    "rngprims inductor fsdp"
)

# Operators with one of these in their name are assertions, although their schemas do not say so.
ASSERTING = ("assert", "constrain_range")

# Uninitialized memory: two calls differ, and neither is a constant.
UNINITIALIZED = words(
    "empty empty_like empty_strided empty_permuted empty_quantized new new_empty new_empty_strided "
    "_empty_affine_quantized resize resize_as"
)

# Builtins and helpers in the operators' namespaces that are not operators.
_NOT_OPERATORS = words(
    "from_file seed manual_seed initial_seed save has_torch_function boolean_dispatch "
    "assert_int_or_pair init_num_threads set_num_threads"
)

IN_PLACE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in words(
        "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift "
        "iconcat setitem delitem"
    )
)
IN_PLACE_DUNDERS = frozenset(
    f"__{name}__"
    for name in words(
        "iadd isub imul itruediv ifloordiv imod ipow imatmul iand ior ixor ilshift irshift "
        "setitem delitem"
    )
)
PURE_DUNDERS = frozenset(
    f"__{name}__"
    for name in words(
        "add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod pow rpow "
        "matmul rmatmul and rand or ror xor rxor lshift rlshift rshift rrshift neg pos abs invert "
        "eq ne lt le gt ge len bool int float index contains getitem"
    )
)

_PURE_OPERATORS = frozenset(
    getattr(operator, name)
    for name in words(
        "add sub mul truediv floordiv mod pow matmul and_ or_ xor lshift rshift neg pos "
        "abs invert inv not_ eq ne lt le gt ge is_ is_not contains getitem index truth concat"
    )
)
_PURE_BUILTINS = frozenset(
    getattr(builtins, name)
    for name in words(
        "getattr len max min sum abs round pow divmod int float bool complex str tuple "
        "list dict slice range isinstance hasattr zip enumerate reversed sorted all any"
    )
)
_PURE_MATH = frozenset(
    value for name, value in vars(math).items() if callable(value) and not name.startswith("_")
)
_PURE_SYMBOLIC = frozenset(
    value
    for name, value in vars(torch).items()
    if name.startswith("sym_") and callable(value) and name != "sym_fresh_size"
)
PURE_PYTHON = _PURE_OPERATORS | _PURE_BUILTINS | _PURE_MATH | _PURE_SYMBOLIC

# The pure Python callables whose result may contain an operand.
PYTHON_MAY_RETURN_OPERAND = frozenset(
    (operator.getitem, operator.concat, operator.pos, operator.add, operator.mul)
) | frozenset(
    getattr(builtins, name)
    for name in words("getattr max min sum tuple list dict slice zip enumerate reversed sorted")
)
# `+` and `*` return an operand's parts only for containers, never for tensors.
PYTHON_CONTAINER_ONLY = frozenset((operator.add, operator.mul, operator.concat))


@dataclass(frozen=True, slots=True)
class OperatorFacts:
    """The combined facts of the overloads of an aten operator."""

    exists: bool
    random: bool
    mutates: bool
    may_alias: bool


@cache
def aten_facts(name: str) -> OperatorFacts:
    """The facts of `torch.ops.aten.<name>`; `exists` is False if there is no such operator."""
    packet = getattr(torch.ops.aten, name, None) if name.isidentifier() else None
    if not isinstance(packet, OpOverloadPacket):
        return OperatorFacts(exists=False, random=False, mutates=False, may_alias=False)
    names: list[str] = packet.overloads()
    # Not by torch.Tag.out, which torch 2.11 does not have.
    overloads = [op for op in (getattr(packet, o) for o in names) if not _has_out(op)]
    # Some packets (aten.einsum) list TorchScript overloads without a kernel; they have no tags.
    return OperatorFacts(
        exists=True,
        random=any(is_tagged_random(op) for op in overloads),
        mutates=any(op._schema.is_mutable for op in overloads),  # noqa: SLF001
        may_alias=name in MAY_RETURN_OPERAND or any(returns_alias(op) for op in overloads),
    )


def is_tagged_random(op: OpOverload[..., Any]) -> bool:
    """Whether the operator draws from the random number generator by default."""
    return torch.Tag.nondeterministic_seeded in op.tags


def returns_alias(op: OpOverload[..., Any]) -> bool:
    """Whether a result may share storage with an operand."""
    if any(result.alias_info is not None for result in op._schema.returns):  # noqa: SLF001 - schema
        return True
    maybe = getattr(torch.Tag, "maybe_aliasing_or_mutating", None)
    # Normalizations are tagged because of the statistics that they write; their results are fresh.
    tagged = maybe in op.tags and target_name(op) not in NORMALIZATIONS
    return tagged or target_name(op) in MAY_RETURN_OPERAND


@cache
def torch_functions() -> dict[Callable[..., Any], tuple[str, bool]]:
    """Torch's operator-like Python callables: callable -> (name, whether from torch.nn.functional).

    Builtins that torch generates from its operators, the functions of torch.functional, and the
    public ones of torch.nn.functional. torch.save, torch.seed and the like are not included, and
    count as unknown.
    """
    table: dict[Callable[..., Any], tuple[str, bool]] = {}
    for space, prefix in (
        (torch._C._VariableFunctions, ""),  # noqa: SLF001 - where torch's builtins live
        (torch._C._nn, ""),  # noqa: SLF001 - where torch.nn.functional's builtins live
        (torch.functional, ""),
        (torch.special, "special_"),
        (torch.linalg, "linalg_"),
        (torch.fft, "fft_"),
    ):
        for name in dir(space):
            value = getattr(space, name)
            operator_name = prefix + name.removeprefix(prefix)
            generated = isinstance(value, BuiltinFunctionType) or (
                getattr(value, "__module__", "") == "torch.functional"
            )
            if name.startswith("_") or name in _NOT_OPERATORS or not generated:
                continue
            if aten_facts(operator_name).exists or aten_facts(operator_name.rstrip("_")).exists:
                table.setdefault(value, (operator_name, False))
    for name in dir(torch.nn.functional):
        value = getattr(torch.nn.functional, name)
        owner = getattr(value, "__module__", None)
        if name.startswith("_") or not callable(value) or isinstance(value, type):
            continue
        if owner in {"torch.nn.functional", "torch._jit_internal"} and name not in _NOT_OPERATORS:
            table[value] = (name, True)
    table[torch.tensor] = ("tensor", False)
    table[torch.as_tensor] = ("as_tensor", False)
    return table


def _has_out(op: OpOverload[..., Any]) -> bool:
    return any(a.is_out for a in op._schema.arguments)  # noqa: SLF001 - schema
