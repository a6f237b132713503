"""The strings that operators and functions of torch accept.

torch's own source compares arguments with each of them. No other string of a caller stays in a
graph that is compiled natively.
"""

# ruff: noqa: SIM905 - long lists of names are most readable as words

from __future__ import annotations

import re
from typing import Final

from lazyfx.shared.wire.targets.autograd_functions import NAMES as FUNCTIONS
from lazyfx.shared.wire.targets.target_lists import LOOKUPS

_CHOICES: Final = (
    # Rounding, reductions, losses, norms, decompositions.
    "trunc floor sum prod product mean amax amin max min add multiply avg premul_sum band bor bxor "
    "none batchmean tanh fro nuc inf -inf L U l u reduced complete r gels gelsd gelss gelsy gesvd "
    "gesvdj gesvda left right lower higher midpoint nearest linear bilinear bicubic trilinear area "
    "nearest-exact ij xy forward backward ortho same valid same_upper same_lower constant reflect "
    "reflection replicate circular zeros border error different same_kind safe unsafe equiv no "
    "use_mm_for_euclid_dist use_mm_for_euclid_dist_if_necessary donot_use_mm_for_euclid_dist C F "
    "K A lanczos "
    # Activations and post-operations of fused kernels.
    "relu relu_ gelu gelu_ silu swish sigmoid hardswish hardsigmoid hardtanh leaky_relu elu selu "
    "mish softplus softmax log_softmax glu reglu geglu swiglu erf exp log sqrt abs clamp clip "
    "fanh sub mul div "
    # Devices, layouts, memory formats.
    "cpu cuda meta xpu mps mtia hpu privateuseone strided sparse jagged contiguous_format "
    "preserve_format channels_last channels_last_3d torch_function "
    # Dtypes, as NumPy and torch name them.
    "float16 float32 float64 bfloat16 half float double int8 int16 int32 int64 uint8 uint16 uint32 "
    "uint64 short int long bool bool_ complex complex32 complex64 complex128 nan "
    # Attributes and methods of tensors, of shapes, and of what torch returns by name.
    "T H mT mH real imag shape dtype device layout grad grad_fn data ndim itemsize nbytes size "
    "stride numel dim is_cuda is_cpu is_meta is_sparse is_leaf requires_grad names retains_grad "
    "output_nr values indices eigenvalues eigenvectors solution residuals rank singular_values "
    "Q R S V Vh Vt P LU pivots info sign logabsdet mantissa exponent index type start stop step "
    "eps tiny bits resolution smallest_normal counts inverse_indices hist bin_edges tau jpvt "
    # Options of attention kernels.
    "AUTO TRITON TRITON_DECODE FLASH BACKEND BLOCKS_ARE_CONTIGUOUS BLOCK_M BLOCK_M1 BLOCK_M2 "
    "BLOCK_N BLOCK_N1 BLOCK_N2 FLOAT32_PRECISION FORCE_USE_FLEX_ATTENTION GQA_SHARED_HEADS "
    "HAS_FULL_BLOCKS IS_DIVISIBLE OUTPUT_LOGSUMEXP OUTPUT_MAX PARTITION_SIZE PRESCALE_QK "
    "QK_HEAD_DIM ROWS_GUARANTEED_SAFE SAFE_N_BOUNDARY SKIP_MASK_SCORE SM_SCALE "
    "SPARSE_KV_BLOCK_SIZE SPARSE_Q_BLOCK_SIZE SPLIT_KV USE_TMA V_HEAD_DIM WRITE_DQ ieee tf32 "
    "num_consumer_groups num_stages num_warps "
    # Checks of recomputed regions.
    "default torch early_stop"
).split()
# Names that graphs may look up: attributes, backends of attention.
_LOOKED_UP: Final = frozenset().union(*(names for *_, names in LOOKUPS.values()), FUNCTIONS)
WORDS: Final = frozenset(["", *_CHOICES]) | _LOOKED_UP

# Equations of einsum: single letters, commas, an arrow and an ellipsis.
_EQUATION: Final = re.compile(r"[A-Za-z, .]{0,200}(->[A-Za-z .]{0,100})?", re.ASCII)
_TENSOR_TYPE: Final = re.compile(r"torch\.(cuda\.|sparse\.)?[A-Z][A-Za-z0-9]{2,15}Tensor", re.ASCII)
_DTYPE: Final = re.compile(r"torch\.(b?float|u?int|complex|bool)[0-9a-z_]{0,12}", re.ASCII)
# What operators of other libraries may take: one plain word.
_PLAIN: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,63}", re.ASCII)


def is_word(text: str) -> bool:
    """Whether a string has a meaning to torch."""
    return text in WORDS or bool(_TENSOR_TYPE.fullmatch(text) or _DTYPE.fullmatch(text))


def is_equation(text: str) -> bool:
    """Whether a string is an equation of einsum."""
    return bool(_EQUATION.fullmatch(text))


def is_plain(text: str) -> bool:
    """Whether a string is a plain word: letters, digits and _.+-, at most 64."""
    return bool(_PLAIN.fullmatch(text))
