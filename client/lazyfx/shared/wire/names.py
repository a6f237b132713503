"""Node names as stems and suffixes, and the rules for names in a graph."""

from __future__ import annotations

import keyword
import re
import unicodedata
from collections.abc import Iterable, Sequence
from functools import lru_cache
from operator import add

import numpy as np
import torch

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.columns import column
from lazyfx.v1 import graph_pb2 as pb

# A suffix fits into 32 bits.
_MAX_DIGITS = 10
# Atoms of attribute paths that are not identifiers ("0", "my-layer") reach generated source in
# double quotes, so they must not end such a string.
_ATOM = re.compile(r"[A-Za-z0-9_\-+:@/ ]+\Z", re.ASCII)
_KEYWORDS = frozenset(keyword.kwlist)
_RESERVED = frozenset(
    {"self", "torch", "device", "inf", "nan", "NoneType", "fx_pytree", "pytree", "getattr", "slice"}
)
MAX_NAME = 1024


# Names recur in every graph: "add_1", "view_2".
@lru_cache(maxsize=32768)
def split(name: str) -> tuple[str, int]:
    """Stem and suffix of a name: "add_1" is ("add", 2), "add" is ("add", 0)."""
    stem, _, digits = name.rpartition("_")
    if (
        stem
        and digits.isdecimal()
        and digits.isascii()
        and len(digits) < _MAX_DIGITS
        and (digits[0] != "0" or digits == "0")
    ):
        return stem, 1 + int(digits)
    return name, 0


def join(stem: str, suffix: int) -> str:
    """The name of a stem and a suffix."""
    return f"{stem}_{suffix - 1}" if suffix else stem


def write_names(names: Iterable[str], message: pb.GraphNames) -> None:
    """Fill the stem and suffix columns of `message`."""
    stems, suffixes = zip(*map(split, names), strict=True)
    numbers = {stem: number for number, stem in enumerate(dict.fromkeys(stems))}
    message.stems.extend(numbers)
    message.stem.extend(map(numbers.__getitem__, stems))
    message.suffix.extend(suffixes)


def read_names(message: pb.GraphNames, count: int) -> list[str]:
    """Read the `count` node names of a graph: valid and distinct identifiers.

    Raises:
        DecodeError: A column of the wrong length, a stem out of range, a name that is invalid in
            Python source, or a duplicate name.
    """
    return count_names(message, count)[0]


def count_names(message: pb.GraphNames, count: int) -> tuple[list[str], dict[str, int]]:
    """The names of `read_names`, and the greatest suffix of each stem that has one.

    The suffixes are those that torch.fx counts for new names, starting at 0.

    Raises:
        DecodeError: As in `read_names`.
    """
    stems, stem, suffixes = list(message.stems), column(message.stem), column(message.suffix)
    if len(stem) != count or len(suffixes) != count:
        raise DecodeError(f"must have one name per node ({count} nodes)", field="presentation.stem")
    fit = all(map(str.isidentifier, stems)) and "".join(stems).isascii()
    if not fit or max(map(len, stems), default=0) > MAX_NAME:
        wrong = next(i for i, s in enumerate(stems) if len(s) > MAX_NAME or not _is_plain(s))
        node = next(iter(np.flatnonzero(stem == wrong).tolist()), None)
        raise DecodeError(
            f"{stems[wrong][:100]!r} is not a name", field="presentation.stems", node=node
        )
    if count and stem.max() >= len(stems):
        raise DecodeError(
            "a stem index out of range", field="presentation.stem", node=int(stem.argmax())
        )
    spell = _ENDS.__getitem__ if count and suffixes.max() < len(_ENDS) else _end
    ends = map(spell, suffixes.tolist())
    names = list(map(add, map(stems.__getitem__, stem.tolist()), ends))
    distinct = set(names)
    if len(distinct) != count:
        first = dict(zip(reversed(names), reversed(range(count)), strict=True))
        node = next(i for i, name in enumerate(names) if first[name] < i)
        raise DecodeError("two nodes have the same name", field="presentation.stem", node=node)
    for words, reason in ((_RESERVED, "is reserved"), (_KEYWORDS, "is a keyword")):
        for name in words & distinct:
            raise DecodeError(
                f"{name!r} {reason}", field="presentation.stems", node=names.index(name)
            )
    greatest = np.ones(len(stems), np.int64)
    np.maximum.at(greatest, stem, suffixes)
    counted = np.flatnonzero(greatest > 1).tolist()
    return names, {stems[number]: int(greatest[number]) - 1 for number in counted}


def _is_plain(stem: str) -> bool:
    return stem.isidentifier() and stem.isascii()


def _end(suffix: int) -> str:
    return join("", suffix)


_ENDS = tuple(map(_end, range(4096)))


def check_identifier(name: str, field: str, node: int | None = None) -> None:
    """Refuse an argument name of `node` that is not a Python identifier."""
    if (
        len(name) > MAX_NAME
        or not name.isidentifier()
        or keyword.iskeyword(name)
        or unicodedata.normalize("NFKC", name) != name
        or name in _RESERVED
    ):
        raise DecodeError(f"{name[:100]!r} is not an argument name", field=field, node=node)


def is_path(path: str) -> bool:
    """Whether `path` is a dotted attribute path that a graph may use."""
    atoms = path.split(".")
    return (
        len(path) <= MAX_NAME
        and all(_ATOM.match(atom) and not atom.startswith("__") for atom in atoms)
        and atoms[0] not in _TAKEN
        and not keyword.iskeyword(atoms[0])
    )


# Existing attributes of a GraphModule. By name only, because lookups are slow.
_EMPTY = torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph())
_TAKEN = frozenset(name for name in dir(_EMPTY) if hasattr(_EMPTY, name))


def canonical_paths(attributes: Sequence[pb.Attribute]) -> list[str]:
    """Attribute paths without a presentation: "a<i>", with tensors of leaf modules below it."""
    paths = [f"a{index}" for index in range(len(attributes))]
    for index, attribute in enumerate(attributes):
        if attribute.WhichOneof("kind") == "module":
            for tensor in attribute.module.tensors:
                if not index < tensor.attribute < len(paths):
                    raise DecodeError("a tensor of a leaf module does not follow it",
                                      field=f"attributes[{index}].module")  # fmt: skip
                paths[tensor.attribute] = f"a{index}.{tensor.name}"
    return paths
