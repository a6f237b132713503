"""Hand-written signatures of callables for which torch has neither a schema nor a stub.

They accept what captures write, and no more. Strings are allowed only where a callable expects
words.
"""

# ruff: noqa: SIM905 - long lists of names are most readable as words

from __future__ import annotations

from typing import Final

_ONE_NUMBER = (
    "acos acosh asin asinh atan atanh cbrt ceil cos cosh degrees erf erfc exp exp2 expm1 fabs "
    "floor frexp gamma isfinite isinf isnan isqrt lgamma log10 log1p log2 modf radians sin sinh "
    "sqrt tan tanh trunc ulp"
).split()
_TWO_NUMBERS = "atan2 copysign fmod ldexp nextafter pow remainder".split()
_MATH: Final = {
    **dict.fromkeys(_ONE_NUMBER, "(x: Number, /)"),
    **dict.fromkeys(_TWO_NUMBERS, "(x: Number, y: Number, /)"),
    **dict.fromkeys(["gcd", "lcm", "hypot"], "(*numbers: Number)"),
    "dist": "(p: list[Number], q: list[Number], /)",
    "fsum": "(numbers: list[Number], /)",
    "isclose": "(a: Number, b: Number, *, rel_tol: float = ..., abs_tol: float = ...)",
    "log": "(x: Number, base: Number = ..., /)",
    "prod": "(numbers: list[Number], /, *, start: Number = ...)",
}
_ONE_VALUE = "abs index inv invert neg not_ pos truth".split()
_TWO_VALUES = (
    "add and_ concat floordiv iadd iand iconcat ifloordiv ilshift imatmul imod imul ior ipow "
    "irshift isub itruediv ixor lshift matmul mod mul or_ pow rshift sub truediv xor"
).split()
# Compared values and dictionary keys may be strings.
_TOLD_APART = "contains countOf delitem eq ge getitem gt indexOf is_ is_not le lt ne".split()
_OPERATOR: Final = {
    **dict.fromkeys(_ONE_VALUE, "(a: Any, /)"),
    **dict.fromkeys(_TWO_VALUES, "(a: Any, b: Any, /)"),
    **dict.fromkeys(
        _TOLD_APART, "(a: str | list[str | Any] | Any, b: str | list[str | Any] | Any, /)"
    ),
    "length_hint": "(a: Any, default: int = ..., /)",
    "setitem": "(a: Any, b: str | Any, c: Any, /)",
}
# NumPy conversions such as numpy.float32(x); they accept "inf" and "nan".
_NUMPY_DTYPES = (
    "bool_ complex128 complex64 float16 float32 float64 int16 int32 int64 int8 uint16 uint32 "
    "uint64 uint8"
).split()
_ARRAY_OF_ONE = "abs invert neg pos".split()
_ARRAY_OF_TWO = (
    "add and contains divmod eq floordiv ge getitem gt iadd iand ifloordiv ilshift imatmul imod "
    "imul ior ipow irshift isub itruediv ixor le lshift lt matmul mod mul ne or pow radd rand "
    "rdivmod rfloordiv rlshift rmatmul rmod rmul ror rpow rrshift rshift rsub rtruediv rxor sub "
    "truediv xor"
).split()
_NUMPY: Final = {
    **dict.fromkeys(_NUMPY_DTYPES, "(value: str | Any, /)"),
    **{f"ndarray.__{name}__": "(self: Self, /)" for name in _ARRAY_OF_ONE},
    **{f"ndarray.__{name}__": "(self: Self, other: Any, /)" for name in _ARRAY_OF_TWO},
    "ndarray.__setitem__": "(self: Self, index: Any, value: Any, /)",
    "linalg.cond": "(x: Any, p: str | Any = ...)",
    # Of torch's global generator in the process that runs the graph, which all graphs draw from.
    "random.seed": "(seed: int | None = ...)",
}
_BUILTINS: Final = {
    **dict.fromkeys(["abs", "all", "any"], "(x: Any, /)"),
    **dict.fromkeys(["bool", "list", "tuple"], "(x: Any = ..., /)"),
    **dict.fromkeys(["float", "int"], "(x: Number = ..., /)"),
    "complex": "(real: Number = ..., imag: Number = ...)",
    "dict": "(x: Any = ..., /, **entries: Any)",
    "divmod": "(x: Number, y: Number, /)",
    "getattr": "(object: Any, name: str, /)",
    "isinstance": "(x: Any, classes: Callable | list[Callable], /)",
    "len": "(x: list[str | Any] | Any, /)",
    **dict.fromkeys(["max", "min"], "(*values: Any, default: Any = ...)"),
    "pow": "(base: Number, exp: Number, mod: int | None = ...)",
    "range": "(start: int, stop: int = ..., step: int = ..., /)",
    "round": "(number: Number, ndigits: int | None = ...)",
    "slice": "(start: int | None, stop: int | None = ..., step: int | None = ..., /)",
    "sorted": "(values: Any, /, *, reverse: bool = ...)",
    "sum": "(values: Any, /, start: Any = ...)",
}
_NO_ARGUMENTS = (
    "torch._C._functorch._grad_decrement_nesting torch._C._functorch._grad_increment_nesting "
    "torch._C._functorch._jvp_decrement_nesting torch._C._functorch._jvp_increment_nesting "
    "torch._C._functorch._vmap_decrement_nesting "
    "torch._C._functorch.get_inplace_requires_grad_allowed torch._C._autograd."
    "_saved_tensors_hooks_enable torch._C._enter_dual_level torch._C._is_fwd_grad_enabled "
    "torch.autograd.function.FunctionCtx torch.get_default_dtype torch.is_inference_mode_enabled"
).split()
_UNIQUE = (
    "(input: Tensor, sorted: bool = ..., return_inverse: bool = ..., return_counts: bool = ..., "
    "dim: int | None = ...)"
)
_CONSECUTIVE = (
    "(input: Tensor, return_inverse: bool = ..., return_counts: bool = ..., dim: int | None = ...)"
)
_LU = "(A: Tensor, pivot: bool = ..., get_infos: bool = ..., out: list[Tensor] | None = ...)"
_TORCH: Final = {
    **dict.fromkeys(_NO_ARGUMENTS, "()"),
    "torch.Size": "(sizes: list[int] = ..., /)",
    "torch.Tensor": "(data: Any = ..., /)",
    "torch.device": "(type: Device, index: int = ...)",
    "torch.dtype": "()",
    **dict.fromkeys(["torch.finfo", "torch.iinfo"], "(type: dtype = ..., /)"),
    "torch.get_autocast_dtype": "(device_type: Device, /)",
    "torch.is_autocast_enabled": "(device_type: Device = ..., /)",
    "torch.get_device": "(input: Tensor)",
    "torch.nn.modules.linear_cross_entropy_options.LinearCrossEntropyOptions": (
        "(allow_retain_graph: bool = ..., batch_chunk_size: int | None = ..., chunking_method: "
        "str | None = ..., acc_policy: str = ..., acc_dtype: dtype | None = ...)"
    ),
    **dict.fromkeys(["torch.unique", "torch.functional.unique"], _UNIQUE),
    **dict.fromkeys(
        ["torch.unique_consecutive", "torch.functional.unique_consecutive"], _CONSECUTIVE
    ),
    **dict.fromkeys(["torch.lu", "torch.functional.lu"], _LU),
    **dict.fromkeys(
        ["torch.einsum", "torch.functional.einsum", "torch._numpy.einsum"],
        "(*operands: str | Any, out: Tensor | None = ..., dtype: dtype | str | None = ..., "
        "order: str = ..., casting: str = ..., optimize: bool = ...)",
    ),
    **dict.fromkeys(
        ["torch.meshgrid", "torch.functional.meshgrid"],
        "(*tensors: Any, indexing: str | None = ...)",
    ),
    "torch.amp.autocast_mode._enter_autocast": "(*values: str | Any)",
    "torch._C._autograd._get_data_attr": "(input: Tensor, /)",
    "torch._C._autograd._saved_tensors_hooks_disable": "(message: str, fail: bool = ..., /)",
    "torch._C._exit_dual_level": "(level: int)",
    "torch._C._log_api_usage_once": "(event: str, /)",
    **dict.fromkeys(
        ["torch._C._set_fwd_grad_enabled", "torch._C._set_grad_enabled"], "(enabled: bool, /)"
    ),
    "torch._C._functorch._add_batch_dim": "(input: Tensor, batch_dim: int, level: int, /)",
    "torch._C._functorch._remove_batch_dim": (
        "(input: Tensor, level: int, batch_size: int, out_dim: int, /)"
    ),
    **dict.fromkeys(
        [
            "torch._C._functorch._unwrap_for_grad", "torch._C._functorch._wrap_for_grad",
            "torch._C._functorch._unwrap_batched",
        ],
        "(input: Tensor, level: int, /)",
    ),
    "torch._C._functorch._vmap_increment_nesting": "(batch_size: int, randomness: str, /)",
    **dict.fromkeys(
        [
            "torch._C._functorch.set_inplace_requires_grad_allowed",
            "torch._functorch.eager_transforms.set_inplace_requires_grad_allowed",
        ],
        "(allowed: bool, /)",
    ),
    "torch._functorch.eager_transforms._assert_wrapped_functional": (
        "(unwrapped: Tensor, wrapped: Tensor, /)"
    ),
    "torch.autograd.grad_mode.set_grad_enabled": "(mode: bool)",
    # Their stubs omit that a size may be None: the size of the input.
    **dict.fromkeys(
        [
            f"torch.nn.functional.adaptive_max_pool{n}d{suffix}"
            for n in (2, 3) for suffix in ("", "_with_indices")
        ],
        "(input: Tensor, output_size: int | list[int | None], return_indices: bool = ...)",
    ),
    "torch._dynamo.utils.numpy_attr_wrapper": "(array: Any, name: str, /)",
}  # fmt: skip

FUNCTIONS: Final = {
    **{f"math.{name}": text for name, text in _MATH.items()},
    **{f"operator.{name}": text for name, text in _OPERATOR.items()},
    **{f"torch._numpy.operator.{name}": text for name, text in _OPERATOR.items()},
    **{f"torch._numpy.{name}": text for name, text in _NUMPY.items()},
    **{f"builtins.{name}": text for name, text in _BUILTINS.items()},
    **_TORCH,
}
"""Signatures of functions; they override stubs and annotations."""

# Methods of which only these signatures are accepted: torch's stubs allow more than is safe. `new`
# also creates tensors from storages and addresses.
NARROWED: Final = frozenset({"new"})

_WORD_KEYS = "(self: Container, key: str | Any, default: Any = ..., /)"
METHODS: Final = {
    "append": "(self: Container, value: Any, /)",
    "as_integer_ratio": "(self: Self)",
    "bit_length": "(self: Self)",
    "conjugate": "(self: Self)",
    "copy": "(self: Container)",
    "count": "(self: Container, value: str | Any, /)",
    "extend": "(self: Container, values: Any, /)",
    "get": _WORD_KEYS,
    "index": "(self: Container, value: str | Any, start: int = ..., stop: int = ..., /)",
    "insert": "(self: Container, place: int, value: Any, /)",
    "is_integer": "(self: Self)",
    **dict.fromkeys(["items", "keys", "values"], "(self: Container)"),
    "new": "(self: Self, *size: int)",
    "numel": "(self: Container)",
    "pop": "(self: Container, key: str | Any = ..., default: Any = ..., /)",
    "update": "(self: Container, other: Any = ..., /, **entries: Any)",
    # Methods of both dictionaries and tensors.
    **dict.fromkeys(["__contains__", "__getitem__"], "(self: Container, key: str | Any, /)"),
    "__setitem__": "(self: Container, key: str | Any, value: Any, /)",
    "__len__": "(self: Container)",
    "__pos__": "(self: Self)",
    **dict.fromkeys(
        [
            "__add__", "__and__", "__div__", "__eq__", "__floordiv__", "__ge__", "__gt__",
            "__iadd__", "__iand__", "__idiv__", "__ifloordiv__", "__ilshift__", "__imod__",
            "__imul__", "__ior__", "__ipow__", "__irshift__", "__isub__", "__itruediv__",
            "__ixor__", "__le__", "__lshift__", "__lt__", "__matmul__", "__mod__", "__mul__",
            "__ne__", "__or__", "__pow__", "__radd__", "__rand__", "__rdiv__", "__rfloordiv__",
            "__rlshift__", "__rmatmul__", "__rmod__", "__rmul__", "__ror__", "__rpow__",
            "__rrshift__", "__rshift__", "__rsub__", "__rtruediv__", "__rxor__", "__sub__",
            "__truediv__", "__xor__",
        ],
        "(self: Container, other: Any, /)",
    ),
    **dict.fromkeys(
        (
            "bfloat16 bool byte cdouble cfloat chalf char contiguous cpu double float half int "
            "long short"
        ).split(),
        "(self: Self, memory_format: memory_format | None = ...)",
    ),
    **dict.fromkeys(
        ["cuda", "mtia", "xpu", "ipu"],
        "(self: Self, device: Device | None = ..., non_blocking: bool = ..., "
        "memory_format: memory_format | None = ...)",
    ),
    "unique": _UNIQUE.replace("input: Tensor", "self: Self"),
    "unique_consecutive": _CONSECUTIVE.replace("input: Tensor", "self: Self"),
    "type": "(self: Self, dtype: str | dtype | Callable | None = ..., non_blocking: bool = ...)",
    "resize": "(self: Self, *sizes: int | list[int], refcheck: bool = ...)",
}  # fmt: skip
"""Signatures of methods, in addition to Tensor's stub; also of values other than tensors."""

_OPERANDS = "*operands: Any, **others: Any"
HIGHER_ORDER: Final = {
    "_export_tracepoint": "(*operands: Any, kind: str, path: str)",
    "associative_scan": "(combine_fn: Any, xs: Any, additional_inputs: Any)",
    **dict.fromkeys(
        ["auto_functionalized", "auto_functionalized_v2"],
        "(_mutable_op: Callable, /, **arguments: str | Any)",
    ),
    "autograd_function_apply": f"(fwd: Any, bwd: Any, {_OPERANDS})",
    "cond": "(pred: Any, true_fn: Any, false_fn: Any, operands: Any = ...)",
    "custom_function_call": f"({_OPERANDS})",
    "flat_apply": (
        "(func: Callable | Any, in_spec: Any, *operands: str | Any, checked_output: bool = ...)"
    ),
    "flex_attention": (
        "(query: Any, key: Any, value: Any, score_mod: Any, block_mask: Any, scale: float, "
        "kernel_options: dict, score_mod_other_buffers: Any = ..., "
        "mask_mod_other_buffers: Any = ...)"
    ),
    "flex_attention_backward": (
        "(query: Any, key: Any, value: Any, out: Any, logsumexp: Any, grad_out: Any, "
        "grad_logsumexp: Any, fw_graph: Any, joint_graph: Any, block_mask: Any, scale: float, "
        "kernel_options: dict, score_mod_other_buffers: Any = ..., "
        "mask_mod_other_buffers: Any = ...)"
    ),
    "foreach_map": f"(fn: Callable | Any, {_OPERANDS})",
    **dict.fromkeys(
        ["graphsafe_run_with_rng_state", "run_and_save_rng_state"],
        "(op: Callable, *operands: str | Any, **others: str | Any)",
    ),
    "hints_wrapper": "(body_fn: Any, args: Any, kwargs: dict, hints: dict)",
    "invoke_quant": f"(subgraph: Any, {_OPERANDS})",
    "invoke_quant_packed": (
        "(subgraph: Any, *operands: Any, scheme: str | None = ..., quant_options: Any = ...)"
    ),
    "invoke_subgraph": "(subgraph: Any, identifier: str | None, *operands: Any)",
    "local_map_hop": f"(gm: Any, {_OPERANDS})",
    "map_impl": f"({_OPERANDS})",
    "out_dtype": "(op: Callable, output_dtype: dtype, *operands: Any)",
    "run_dtensor_rng_op": (
        "(start_offset_incr: Any, end_offset_incr: Any, op: Callable, *operands: str | Any, "
        "**others: str | Any)"
    ),
    "run_with_rng_state": (
        "(rng_state: Any, op: Callable, *operands: str | Any, **others: str | Any)"
    ),
    "scan": "(combine_fn: Any, init: Any, xs: Any, additional_inputs: Any)",
    "strict_mode": "(callable: Any, operands: Any)",
    **dict.fromkeys(["tag_activation_checkpoint", "wrap_activation_checkpoint"],
        "(function: Any, *operands: Any, context_fn: Callable | Any = ..., "
        "determinism_check: str = ..., **others: Any)"),
    **dict.fromkeys(
        ["while_loop", "while_loop_stack_output"],
        "(cond_fn: Any, body_fn: Any, carried_inputs: Any, additional_inputs: Any = ..., "
        "*, mutated_arg_indices: str = ...)",
    ),
    "with_effects": "(token: Any, op: Callable, *operands: str | Any, **others: str | Any)",
    "wrap": f"(func: Any, {_OPERANDS})",
    "wrap_with_autocast": (
        "(device_type: Device, dtype: dtype | None, enabled: bool, cache_enabled: bool | None, "
        f"wrapped_func: Any, {_OPERANDS})"
    ),
    "wrap_with_set_grad_enabled": f"(enable_grad: bool, wrapped_func: Any, {_OPERANDS})",
}  # fmt: skip
"""Signatures of higher-order operators: subgraphs and callables, then their operands."""
