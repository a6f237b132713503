"""Differences as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lazyfx.explaining.comparing import Difference

_MAX_NAMES = 6


def write(
    digests: tuple[str, str],
    nodes: tuple[int, int],
    differences: Sequence[Difference],
    renamed: Sequence[tuple[str, str]],
    most: int,
) -> str:
    """The text of an explanation; the fields are those of `Explanation`."""
    if digests[0] == digests[1]:
        return "\n".join(_same(digests[0], nodes, renamed))
    groups = _grouped(differences)
    lines = [
        f"two computations: {digests[0][:12]} ({nodes[0]} nodes) and "
        f"{digests[1][:12]} ({nodes[1]} nodes)"
    ]
    for group in groups[:most]:
        lines += _group(group)
    if len(groups) > most:
        left = sum(len(group) for group in groups[most:])
        lines.append(f"... and {left} more differences of {len(groups) - most} kinds")
    return "\n".join(lines)


def _same(digest: str, nodes: tuple[int, int], renamed: Sequence[tuple[str, str]]) -> Iterator[str]:
    yield f"one computation: {digest[:12]} ({nodes[0]} nodes); one compile serves both"
    if renamed:
        shown = ", ".join(f"{a} = {b}" for a, b in renamed[:_MAX_NAMES])
        more = f" and {len(renamed) - _MAX_NAMES} more" if len(renamed) > _MAX_NAMES else ""
        yield f"names of {len(renamed)} nodes differ, without effect: {shown}{more}"


def _grouped(differences: Sequence[Difference]) -> list[list[Difference]]:
    """Group equal differences of many nodes, such as a batch size."""
    groups: dict[object, list[Difference]] = {}
    for i, difference in enumerate(differences):
        whole = difference.kind != "changed"
        key = i if whole else (difference.field, difference.before, difference.after)
        groups.setdefault(key, []).append(difference)
    return list(groups.values())


def _group(group: Sequence[Difference]) -> Iterator[str]:
    head = group[0]
    if head.kind == "removed":
        yield f"- {_where(head)} = {head.before}"
    elif head.kind == "added":
        yield f"+ {_where(head)} = {head.after}"
    else:
        names = ", ".join(_where(difference) for difference in group[:_MAX_NAMES])
        if len(group) > _MAX_NAMES:
            names += f" and {len(group) - _MAX_NAMES} more nodes"
        yield f"! {names}: {head.field}: {head.before} -> {head.after}"


def _where(difference: Difference) -> str:
    names = dict.fromkeys(name for name in (difference.first, difference.second) if name)
    prefix = f"{difference.graph}." if difference.graph else ""
    return prefix + (" = ".join(names) or "the graph")
