"""Composite operators: which of them may run on real values.

torch runs their kernels above the level of a dispatch mode, which therefore sees only the operators
that such a kernel calls. Some also read and write through raw pointers, with sizes from their
arguments (`_sobol_engine_draw`), and some return pointers (`fbgemm_pack_gemm_matrix_fp16`). So they
have their own list, which is checked where Python calls into torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import torch
from torch._ops import OpOverload, OpOverloadPacket

from lazyfx.shared.wire.targets.operator_schemas import operator_of
from lazyfx_server.passes.analysis.evaluation.reviewed_operators import RULES
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.packed import PackedBatchError, check_not_packed
from lazyfx_server.passes.analysis.walk import target_name

# Their kernels only call other operators, each of which is checked in turn.
REVIEWED_COMPOSITES: Final = words(
    "__and__ __iand__ __ior__ __ixor__ __or__ __xor__ _autocast_to_full_precision "
    "_autocast_to_reduced_precision _batch_norm_impl_index "
    "_cast_Byte _cast_Char _cast_Double _cast_Float _cast_Half _cast_Int _cast_Long _cast_Short "
    "_convolution _convolution_mode _fused_rms_norm _pad_circular _pad_enum "
    "_scaled_dot_product_attention_math _weight_norm _weight_norm_differentiable_backward absolute "
    "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adjoint "
    "alpha_dropout arccos arccosh arcsin arcsinh arctan arctan2 arctanh argsort argwhere "
    "atleast_1d atleast_2d atleast_3d avg_pool1d batch_norm broadcast_tensors broadcast_to "
    "can_cast cartesian_prod cdist chain_matmul chalf chunk clip column_stack combinations concat "
    "concatenate conj contiguous conv1d conv2d conv3d conv_transpose1d conv_transpose2d "
    "conv_transpose3d corrcoef cosine_embedding_loss cosine_similarity cov cross "
    "cross_entropy_loss cummaxmin_backward cumprod_backward cumulative_trapezoid det diag "
    "diagflat diff divide dropout dsplit dstack einsum embedding_backward expand_as "
    "feature_alpha_dropout feature_dropout fft_fftshift fft_ifftshift fill_diagonal fix flatten "
    "flatten_dense_tensors fliplr flipud float_power frobenius_norm gather_backward ger get_device "
    "gradient greater greater_equal group_norm gru gru_cell hinge_embedding_loss hsplit hstack "
    "imag index_select_backward infinitely_differentiable_gelu_backward inner instance_norm "
    "inverse is_complex is_conj is_floating_point is_inference is_leaf is_neg is_signed isclose "
    "isfinite isreal kl_div kron l1_loss layer_norm less less_equal linalg_cholesky linalg_det "
    "linalg_diagonal linalg_inv linalg_matmul linalg_matrix_norm linalg_matrix_power "
    "linalg_multi_dot linalg_norm linalg_slogdet linalg_tensorinv linalg_vander linalg_vecdot "
    "log_sigmoid log_softmax logdet lstm lstm_cell mH mT margin_ranking_loss "
    "masked_select_backward matmul matrix_H matrix_power max_pool1d max_pool1d_with_indices "
    "max_pool2d max_pool3d meshgrid moveaxis movedim msort multiply nanmean nanquantile narrow "
    "native_channel_shuffle negative nll_loss nll_loss2d nll_loss_nd nonzero_numpy "
    "norm_except_dim not_equal numpy_T one_hot outer output_nr pad pad_sequence pairwise_distance "
    "poisson_nll_loss positive prelu promote_types quantile ravel real relu6 requires_grad reshape "
    "reshape_as resolve_conj resolve_neg result_type rms_norm rnn_relu rnn_relu_cell rnn_tanh "
    "rnn_tanh_cell row_stack rrelu scaled_dot_product_attention selu slogdet softmax "
    "special_digamma special_erf special_erfc special_erfinv special_exp2 special_expit "
    "special_expm1 special_gammainc special_gammaincc special_gammaln special_i0 special_log1p "
    "special_log_softmax special_logit special_logsumexp special_multigammaln special_ndtr "
    "special_polygamma special_psi special_round special_sinc special_softmax special_xlogy "
    "square subtract sum_to_size swapaxes swapdims sym_is_contiguous take_along_dim tensor_split "
    "tensordot tile to to_dense trace_backward trapezoid trapz triplet_margin_loss true_divide "
    "type_as unflatten unflatten_dense_tensors unsafe_chunk value_selecting_reduction_backward "
    "vander view_as vsplit vstack"
)
_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd  # noqa: SLF001 - torch's own name


class UnreviewedCompositeError(Exception):
    """A call of a composite operator whose kernel has not been reviewed."""


def check_composite(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Refuse a call of a composite operator that was not reviewed.

    Args:
        func: An operator, or a function or method of torch.
        args: Its positional arguments.
        kwargs: Its keyword arguments.

    Raises:
        UnreviewedCompositeError: It may not run.
    """
    name = _unreviewed_name(func)
    if name is not None:
        raise UnreviewedCompositeError(name)
    try:
        check_not_packed(func, args, kwargs)
    except PackedBatchError as error:
        raise UnreviewedCompositeError(target_name(func)) from error


def is_reviewed_composite(operator: OpOverload[..., Any]) -> bool:
    """Whether an operator is composite and may run."""
    return _is_composite(operator) and _is_listed(operator.namespace, target_name(operator))


def _unreviewed_name(func: Any) -> str | None:
    """The name of a composite operator that may not run; None for everything else."""
    if isinstance(func, OpOverload):
        refused = _is_composite(func) and not is_reviewed_composite(func)
        return func.name() if refused else None
    packet = operator_of(func)
    namespace, name = packet[:2] if packet else ("aten", target_name(func))
    return f"{namespace}::{name}" if _is_refused(namespace, name) else None


@lru_cache(maxsize=4096)
def _is_refused(namespace: str, name: str) -> bool:
    """Whether a name is an operator's and any of its overloads may not run."""
    packet = getattr(getattr(torch.ops, namespace), name, None)
    if not isinstance(packet, OpOverloadPacket) or _is_listed(namespace, name):
        return False
    return any(_is_composite(getattr(packet, overload)) for overload in packet.overloads())


def _is_listed(namespace: str, name: str) -> bool:
    """Whether an operator, or its out-of-place form, was reviewed."""
    plain = name if name.endswith("__") else name.removesuffix("_")
    return namespace == "aten" and any(
        n in REVIEWED_COMPOSITES or n in RULES for n in (name, plain)
    )


def _is_composite(operator: OpOverload[..., Any]) -> bool:
    try:
        return bool(operator.has_kernel_for_dispatch_key(_COMPOSITE))
    except RuntimeError:  # one of TorchScript's own operators, which access no tensor data
        return False
