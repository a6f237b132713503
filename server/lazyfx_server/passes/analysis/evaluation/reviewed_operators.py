"""The operators that may run on real values, and the checks before each.

No other operator runs. A name stands for all overloads of the aten operator except those with
`out`, and for its in-place form. Each group has a reason; if a group has checks, torch's kernel
does not validate something that the checks do.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch._ops import OpOverload

from lazyfx.shared.wire.targets.operator_schemas import facts
from lazyfx_server.passes.analysis.evaluation import operand_checks
from lazyfx_server.passes.analysis.evaluation.operand_checks import Call
from lazyfx_server.passes.analysis.operator_facts import words

Rule = tuple[Callable[[Call], None], ...]

# TensorIterator checks and broadcasts all shapes, and computes element by element.
POINTWISE = words(
    "abs acos acosh add addcdiv addcmul angle asin asinh atan atan2 atanh bitwise_and "
    "bitwise_left_shift bitwise_not bitwise_or bitwise_right_shift bitwise_xor ceil celu clamp "
    "clamp_max clamp_min clone conj_physical _conj_physical copysign cos cosh deg2rad digamma elu "
    "eq erf erfc erfinv exp exp2 expm1 floor fmax fmin frac frexp ge gelu gelu_backward gt "
    "hardshrink hardsigmoid hardswish hardtanh heaviside hypot i0 igamma igammac isinf isnan "
    "isneginf isposinf ldexp le leaky_relu lerp lgamma log log10 log1p log2 logaddexp logaddexp2 "
    "logical_and logical_not logical_or logical_xor logit logit_backward lt masked_fill maximum "
    "minimum mish mul nan_to_num native_dropout_backward ne neg nextafter pow rad2deg reciprocal "
    "relu round rsqrt rsub sgn sigmoid sigmoid_backward sign signbit silu silu_backward sin sinc "
    "sinh softplus softshrink special_entr special_erfcx special_i0e special_i1 special_i1e "
    "special_log_ndtr special_ndtri special_xlog1py sqrt sub tan tanh tanh_backward threshold "
    "threshold_backward trunc where xlogy __lshift__ __rshift__ hardswish_backward "
    "hardsigmoid_backward hardtanh_backward leaky_relu_backward elu_backward softplus_backward "
    "softshrink_backward hardshrink_backward mish_backward log_sigmoid_forward complex polar "
    "_prelu_kernel _prelu_kernel_backward mse_loss mse_loss_backward smooth_l1_loss huber_loss "
    "binary_cross_entropy binary_cross_entropy_with_logits isin"
)
# Like pointwise ones; but the CPU traps on the lowest integer divided by -1.
DIVISIONS = words("div floor_divide fmod remainder gcd lcm __irshift__")
# Each named dimension is checked, and torch itself computes the result's size.
REDUCTIONS = words(
    "all amax amin any argmax argmin count_nonzero cumprod cumsum linalg_vector_norm logsumexp "
    "logcumsumexp max mean min norm prod std std_mean sum var var_mean nansum _softmax "
    "_log_softmax _safe_softmax sort topk median nanmedian kthvalue aminmax _is_all_true "
    "_is_any_true equal"
)
# A view within its base, each size and position checked by torch; or a copy of such a view.
VIEWS = words(
    "alias detach diagonal expand permute select slice split split_with_sizes squeeze t transpose "
    "unbind unfold unsqueeze view view_as_complex view_as_real _unsafe_view _neg_view _conj "
    "alias_copy detach_copy diagonal_copy expand_copy permute_copy select_copy slice_copy "
    "split_copy split_with_sizes_copy squeeze_copy t_copy transpose_copy unbind_copy "
    "unsqueeze_copy view_copy unsafe_split unsafe_split_with_sizes lift lift_fresh lift_fresh_copy"
)
# Sizes, strides and offset are not validated.
STRIDED = words("as_strided as_strided_copy _reshape_alias _reshape_alias_copy")
# New memory, all of it written.
CREATIONS = words(
    "arange eye full full_like linspace logspace new_full new_ones new_zeros ones ones_like "
    "scalar_tensor tril triu tril_indices triu_indices zeros zeros_like fill zero copy copy_ "
    "_to_copy hann_window hamming_window blackman_window bartlett_window"
)
# New uninitialized memory: it is filled with zeros before anything reads it.
FRESH = words("empty empty_like empty_strided empty_permuted new_empty new_empty_strided")
# Every operand's shape is checked against the result's.
JOINING = words(
    "cat stack repeat roll flip constant_pad_nd block_diag rot90 diag_embed trace pixel_shuffle "
    "pixel_unshuffle channel_shuffle slice_backward select_backward diagonal_backward "
    "slice_scatter select_scatter diagonal_scatter"
)
# Sizes are checked before they reach a linear algebra library.
PRODUCTS = words(
    "addbmm addmm addmv addr baddbmm bmm dot linear mm mv vdot convolution convolution_backward "
    "_euclidean_dist linalg_cross linalg_inv_ex _linalg_det _linalg_slogdet linalg_cholesky_ex"
)
# They check their indices themselves; so does our check, which fails earlier.
INDEXING = {
    "embedding": operand_checks.indices(
        "indices", operand_checks.size("weight", 0), negative=False
    ),
    "gather": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "index_select": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "index_add": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "index_copy": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "index_fill": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=True
    ),
    "scatter": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "scatter_add": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "scatter_reduce": operand_checks.indices(
        "index", operand_checks.size_at("self", "dim"), negative=False
    ),
    "take": operand_checks.indices("index", operand_checks.elements("self"), negative=True),
    "put": operand_checks.indices("index", operand_checks.elements("self"), negative=True),
    "index": operand_checks.indices_of_each_dimension("indices"),
    "index_put": operand_checks.indices_of_each_dimension("indices"),
    "_unsafe_index": operand_checks.indices_of_each_dimension("indices"),
    "_unsafe_index_put": operand_checks.indices_of_each_dimension("indices"),
    "_index_put_impl": operand_checks.indices_of_each_dimension("indices"),
    "embedding_dense_backward": operand_checks.embedding_backward,
    "nll_loss_forward": operand_checks.targets,
    "nll_loss_backward": operand_checks.targets,
    "max_pool2d_with_indices_backward": operand_checks.pooled_indices(2),
    "max_pool3d_with_indices_backward": operand_checks.pooled_indices(3),
}
# The kernel does not check some of the sizes passed along with the operands.
SIZED = {
    "native_batch_norm": operand_checks.normalized_channels,
    "_native_batch_norm_legit": operand_checks.normalized_channels,
    "_native_batch_norm_legit_no_training": operand_checks.normalized_channels,
    "native_batch_norm_backward": operand_checks.normalized_channels,
    "native_layer_norm": operand_checks.normalized_shape,
    "native_layer_norm_backward": operand_checks.normalized_shape,
    "native_group_norm": operand_checks.grouped,
    "native_group_norm_backward": operand_checks.grouped,
    "_softmax_backward_data": operand_checks.same_shape("grad_output", "output"),
    "_log_softmax_backward_data": operand_checks.same_shape("grad_output", "output"),
    "_scaled_dot_product_flash_attention_for_cpu": operand_checks.attention,
    "_scaled_dot_product_flash_attention_for_cpu_backward": operand_checks.attention_backward,
    "repeat_interleave": operand_checks.repeats,
    "avg_pool2d_backward": operand_checks.pooled_gradient,
    "_adaptive_avg_pool2d_backward": operand_checks.pooled_gradient,
}
# The result's size follows from the operand's, and torch checks one against the other.
POOLING = words(
    "avg_pool2d avg_pool3d max_pool2d_with_indices max_pool3d_with_indices _adaptive_avg_pool2d "
    "_adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
    "reflection_pad1d reflection_pad2d replication_pad1d "
    "replication_pad2d masked_select nonzero"
)
# A scale passed along with the sizes decides which element is read.
RESAMPLING = words(
    "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d "
    "_upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d "
    "upsample_trilinear3d upsample_bicubic2d"
)
# They draw random numbers: allowed in verification runs, but never folded.
RANDOM = words(
    "bernoulli exponential multinomial native_dropout normal normal_functional rand rand_like "
    "randint randint_like randn randn_like random randperm uniform rrelu_with_noise"
)
# They only inspect their operands; they compute nothing and access no data.
ASKING = words(
    "_local_scalar_dense is_same_size sym_size sym_stride sym_numel sym_storage_offset size stride "
    "numel storage_offset dim is_contiguous is_nonzero item _assert_async _assert_scalar "
    "_assert_tensor_metadata _functional_assert_async _functional_assert_scalar "
    "sym_constrain_range sym_constrain_range_for_size"
)


@lru_cache(maxsize=4096)
def rule_of(operator: OpOverload[..., Any]) -> Rule | None:
    """The checks before an operator runs; None if it may not run."""
    namespace, name, _ = facts(operator).operator
    if namespace not in ("aten", "prims") or any(
        argument.is_out
        for argument in operator._schema.arguments  # noqa: SLF001 - schema
    ):
        return None
    if namespace == "prims":
        return () if name == "device_put" else None
    found = RULES.get(name)
    if found is None and name.endswith("_") and not name.endswith("__"):
        found = RULES.get(name[:-1])
    return found


def _rules() -> Mapping[str, Rule]:
    free = POINTWISE | REDUCTIONS | VIEWS | CREATIONS | FRESH | JOINING | PRODUCTS
    free = free | POOLING | RANDOM | ASKING
    return {
        **dict.fromkeys(free, ()),
        **dict.fromkeys(DIVISIONS, (operand_checks.no_lowest_integer,)),
        **dict.fromkeys(STRIDED, (operand_checks.inside_storage,)),
        **dict.fromkeys(RESAMPLING, (operand_checks.plain_scales,)),
        **{name: (check,) for name, check in {**INDEXING, **SIZED}.items()},
    }


RULES = _rules()
