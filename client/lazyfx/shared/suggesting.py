"""Suggestions for unknown names, worded the same everywhere."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Final

SHORT_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amp": "convert_dtype",
        "attention": "fuse_attention",
        "bn_fusion": "fuse_conv_bn",
        "cast": "convert_dtype",
        "checkpoint": "partition_min_cut",
        "conv_bn": "fuse_conv_bn",
        "conv_bn_fusion": "fuse_conv_bn",
        "cse": "common_subexpression_elimination",
        "dce": "dead_code_elimination",
        "dropout": "remove_dropout",
        "fold": "constant_fold",
        "folding": "constant_fold",
        "fp16": "convert_dtype",
        "fuse_bn": "fuse_conv_bn",
        "int8": "quantize_weights",
        "min_cut": "partition_min_cut",
        "noop": "no_op_elimination",
        "normalize": "normalize_arguments",
        "partition": "partition_by_support",
        "quantize": "quantize_weights",
        "replace": "replace_pattern",
        "rewrite": "replace_pattern",
        "sdpa": "fuse_attention",
        "shape_prop": "shape_propagation",
        "shapes": "shape_propagation",
        "split": "split_module",
    }
)
"""Common names of some passes, and their names here."""

# Comparison time is quadratic in the length, and a long text is not a typo.
_MAX_COMPARED = 64
_MAX_LISTED = 40


def closest(
    given: str, known: Iterable[str], short: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The known word most similar to a given one; "" if there is none.

    Args:
        given: The unknown word.
        known: The known words.
        short: Aliases of known words.
    """
    words = tuple(known)
    if len(given) > _MAX_COMPARED:
        return ""
    plain = given.lower().replace("-", "_")
    if short.get(plain) in words:
        return short[plain]
    return next(iter(difflib.get_close_matches(plain, words, n=1, cutoff=0.6)), "")


def did_you_mean(
    given: str, known: Iterable[str], short: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The end of a message about an unknown word: the likely intended one, or the known ones."""
    words = tuple(known)
    if meant := closest(given, words, short):
        return f"; did you mean {meant!r}?"
    if not words:
        return "; there are none"
    more = f" and {len(words) - _MAX_LISTED} more" if len(words) > _MAX_LISTED else ""
    return f"; known names: {', '.join(words[:_MAX_LISTED])}{more}"
