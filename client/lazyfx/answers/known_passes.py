"""The client's own list of lazyfx's passes; a server cannot extend it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final

from lazyfx.shared.pass_spelling import UNTIL_STABLE
from lazyfx.v1 import compiler_pb2 as pb

VALUE_PASSES: Final = frozenset(
    {"constant_fold", "fuse_conv_bn", "fuse_linear_bn", "quantize_weights"}
)
"""The passes that read values of tensors: a client sends weights only for these."""

VALUE_PIPELINES: Final = frozenset({"inference"})
"""The named pipelines that contain one of them."""

LAZYFX_PASSES: Final = VALUE_PASSES | {
    "analyze",
    "batch_fusion",
    "common_subexpression_elimination",
    "convert_dtype",
    "dead_code_elimination",
    "decompose",
    "functionalize",
    "fuse_attention",
    "inductor_joint_graph",
    "inductor_post_grad",
    "inductor_pre_grad",
    "merge_matmul",
    "no_op_elimination",
    "normalize_arguments",
    "partition_by_support",
    "partition_min_cut",
    "reinplace",
    "remove_dropout",
    "remove_duplicate_casts",
    "replace_pattern",
    "shape_propagation",
    "sink_views",
    "split_module",
    UNTIL_STABLE,
}
"""The passes that are part of lazyfx."""

LAZYFX_PIPELINES: Final = VALUE_PIPELINES | {"default", "training"}
"""The named pipelines that are part of lazyfx."""


def reads_values(passes: Iterable[pb.PassSpec]) -> bool:
    """Whether any pass of a request is known to read values of tensors.

    Args:
        passes: Passes as messages, including those in groups such as until_stable.
    """
    return not VALUE_PASSES.isdisjoint(_names(passes)) or not VALUE_PIPELINES.isdisjoint(
        _names(passes)
    )


def are_all_from_lazyfx(passes: Iterable[pb.PassSpec]) -> bool:
    """Whether all passes are part of lazyfx: no plugins, no pipelines of an operator."""
    return {*_names(passes)} <= LAZYFX_PASSES | LAZYFX_PIPELINES


def _names(passes: Iterable[pb.PassSpec]) -> Iterator[str]:
    stack = list(passes)
    while stack:
        spec = stack.pop()
        yield spec.name
        stack.extend(spec.passes)
