"""Suggestions for unknown names, worded the same everywhere."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping
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
        "dead_code": "dead_code_elimination",
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
_TYPO = 0.8
_SIMILAR = 0.6
# A shorter text is in many names by chance.
_MIN_PART = 3
_PART = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def closest(
    given: str, known: Iterable[str], short: Mapping[str, str] = MappingProxyType({})
) -> str:
    """The known word that was most probably meant by a given one; "" if none is likely.

    Case and separators do not count (`foldConstants`), nor does the order of the parts of a word
    (`fold_constants`) or what was added to it (`my_cse`, `dce2`).

    Args:
        given: The unknown word.
        known: The known words.
        short: Aliases of known words.
    """
    words = tuple(known)
    plain = _plain(given) if len(given) <= _MAX_COMPARED else ""
    if not plain:
        return ""
    names = {_plain(alias): word for alias, word in short.items() if word in words}
    names |= {_plain(word): word for word in words}
    rules = (
        lambda: difflib.get_close_matches(plain, names, n=1, cutoff=_TYPO),
        lambda: _of_the_same_parts(plain, names),
        lambda: sorted(_contained(plain, names), key=len, reverse=True),
        lambda: difflib.get_close_matches(plain, names, n=1, cutoff=_SIMILAR),
    )
    return next((names[found[0]] for rule in rules if (found := rule())), "")


def _plain(word: str) -> str:
    return "_".join(part.lower() for part in _PART.findall(word))


def _of_the_same_parts(plain: str, names: Iterable[str]) -> list[str]:
    """The names that have the same parts in another order or inflection."""
    parts = sorted(plain.split("_"))
    return [name for name in names if _are_alike(parts, sorted(name.split("_")))]


def _are_alike(some: list[str], others: list[str]) -> bool:
    """Whether each part of one is the beginning of its counterpart, as `fold` of `folding`."""
    return len(some) == len(others) and all(
        one == other or (len(one) >= _MIN_PART and one == other[: len(one)])
        for one, other in (sorted(pair, key=len) for pair in zip(some, others, strict=True))
    )


def _contained(plain: str, names: Iterable[str]) -> Iterator[str]:
    """The names that are a part of the word, or several parts of it in a row."""
    for name in names:
        if len(name) >= _MIN_PART and f"_{name}_" in f"_{plain}_":
            yield name


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
