"""Names of process groups in native artifacts.

An artifact serves callers whose groups have other names, so its code calls the first group of its
graph "group0", the second "group1" and so on. These become names of this process's groups.
"""

from __future__ import annotations

from collections.abc import Sequence

from lazyfx.backend.torch_group_registry import find_group, register_group
from lazyfx.errors import UnsupportedGraphError


def register_names(names: Sequence[str], *, has_passes: bool) -> None:
    """Make the names that an artifact uses those of the groups that its graph uses.

    Args:
        names: The groups' names in this process, in the order of their first use.
        has_passes: Passes run first, after which groups may come in another order.

    Raises:
        UnsupportedGraphError: Another graph of this process has another group at that place, or
            the order of the groups is not known.
    """
    if has_passes and len(names) > 1:
        raise UnsupportedGraphError(
            "collectives in several process groups, after passes",
            remedy="compile this graph without passes",
        )
    for number, name in enumerate(names):
        alias = f"group{number}"
        group = find_group(name)
        if group is None:
            raise UnsupportedGraphError(f"there is no process group {name!r} in this process")
        known = find_group(alias)
        if known is None:
            register_group(alias, group)
        elif known.group_name != group.group_name:
            raise UnsupportedGraphError(
                f"its process group number {number} is {name!r}, but an earlier graph of this "
                f"process has {known.group_name!r} in that place"
            )
