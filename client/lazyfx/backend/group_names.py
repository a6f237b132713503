"""Names of process groups in native artifacts.

An artifact serves callers whose groups have other names, so its code calls the first group of its
graph "group0", the second "group1" and so on. These become names of this process's groups.

torch forgets all names in `destroy_process_group`, while dynamo keeps what it has compiled. So each
of these names stands for one name of a group for as long as the process runs, and is registered
again when an artifact is called: as with torch alone, an earlier graph uses the group that has the
name now, and never another one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from lazyfx.backend.torch_group_registry import find_group, register_group
from lazyfx.errors import UnsupportedGraphError

# torch's registry is that of the process, and so is this: the group's name by the artifacts' name.
_meant: Final[dict[str, str]] = {}
_lock: Final = threading.Lock()


def register_names(names: Sequence[str], *, has_passes: bool) -> None:
    """Make the names that an artifact uses those of the groups that its graph uses.

    Args:
        names: The groups' names in this process, in the order of their first use.
        has_passes: Passes run first, after which groups may come in another order.

    Raises:
        UnsupportedGraphError: Another graph of this process has or had another group at that
            place, there is no such group, or the order of the groups is not known.
    """
    if has_passes and len(names) > 1:
        raise UnsupportedGraphError(
            "collectives in several process groups, after passes",
            remedy="compile this graph without passes",
        )
    with _lock:
        for number, name in enumerate(names):
            _register(number, name)


def with_names(call: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """The same function, which finds its groups also after they were destroyed and created again.

    Args:
        call: A loaded artifact.
        names: See `register_names`, which accepted them.

    Returns:
        A function that raises UnsupportedGraphError if a group no longer exists.
    """
    if not names:
        return call

    def named(*inputs: Any) -> Any:
        register_names(names, has_passes=False)
        return call(*inputs)

    return named


def _register(number: int, name: str) -> None:
    alias = f"group{number}"
    group = find_group(name)
    if group is None:
        raise UnsupportedGraphError(f"there is no process group {name!r} in this process")
    known = find_group(alias)
    if alias not in _meant and known not in (None, group):
        raise UnsupportedGraphError(
            f"another process group of this process has the name {alias!r}, which artifacts give "
            f"to the group number {number} of their graph",
            remedy="give that process group another name",
        )
    meant = _meant.setdefault(alias, name)
    if meant != name:
        raise UnsupportedGraphError(
            f"its process group number {number} is {name!r}, but an earlier graph of this process "
            f"has {meant!r} in that place"
        )
    if known is not group:
        register_group(alias, group)
