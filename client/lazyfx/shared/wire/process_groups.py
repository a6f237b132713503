"""Process groups of collectives: a name in each caller's process, a number on the wire.

Ranks that run the same program in different groups (tensor-parallel rank 0 in "1", its counterpart
on the next host in "2") call the same operators with different group names. The names are in the
presentation; the body numbers groups in first-use order.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.targets import operator_schemas
from lazyfx.v1 import graph_pb2 as pb

_ARGUMENT = "group_name"
# Names reach generated source as string literals.
_CANONICAL = re.compile(r"group(0|[1-9][0-9]{0,8})\Z", re.ASCII)
_NAME = re.compile(r"[\x20-\x22\x24-\x7e]{1,1024}\Z", re.ASCII)


class GroupName(str):
    """A string that names a process group, distinguished from other strings by its type."""

    __slots__ = ()


class Groups:
    """The process groups of one message under construction.

    Attributes:
        names: Number of each group by its real name, in first-use order.
        places: For targets that run in a group: the position of the argument that names it, by
            index of the target. It is identified by its parameter name, which all of torch's
            functional collectives and most custom ones agree on.
    """

    def __init__(self, body: pb.GraphBody) -> None:
        self.names: dict[str, int] = {}
        self.places: dict[int, int] = {}
        self._body = body

    def register_target(self, target: object, index: int) -> None:
        """Record whether a new target runs in a group."""
        place = operator_schemas.argument_place(target, _ARGUMENT)
        if place is not None:
            self.places[index] = place

    def number(self, name: str) -> int:
        """Number of a group."""
        found = self.names.setdefault(str(name), len(self.names))
        self._body.process_groups = len(self.names)
        return found


class GroupChecker:
    """Checks that a body numbers its groups in first-use order."""

    def __init__(self, body: pb.GraphBody) -> None:
        self._count = body.process_groups
        self._next = 0

    def use(self, number: int, field: str) -> None:
        """Check a reference to a group."""
        if number > self._next or number >= self._count:
            raise DecodeError("process groups are out of first-use order", field=field)
        self._next = max(self._next, number + 1)

    def finish(self) -> None:
        """Check that all groups were used."""
        if self._next != self._count:
            raise DecodeError("not the number of groups in use", field="process_groups")


def mark(
    place: int, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
    """Arguments with the group's name marked as such."""
    if place < len(args) and type(args[place]) is str:
        return (*args[:place], _checked(args[place]), *args[place + 1 :]), kwargs
    if type(kwargs.get(_ARGUMENT)) is str:
        return args, {**kwargs, _ARGUMENT: _checked(kwargs[_ARGUMENT])}
    return args, kwargs


def _checked(name: str) -> GroupName:
    if not _NAME.match(name):
        raise UnsupportedGraphError(
            f"the process group name {name[:100]!r}",
            remedy="name groups in printable ASCII without '#', at most 1024 characters",
        )
    return GroupName(name)


def read_names(count: int, given: list[str] | None) -> list[str]:
    """Read the names of `count` groups: those of a presentation, or canonical ones.

    Raises:
        DecodeError: Not one name per group, a duplicate, or a name that is invalid in source.
    """
    if given is None:
        return [f"group{number}" for number in range(count)]
    field = "presentation.process_groups"
    if len(given) != count or len(set(given)) != count:
        raise DecodeError("must have one distinct name per process group", field=field)
    for name in given:
        if not _NAME.match(name):
            raise DecodeError(f"{name[:100]!r} is not a group name", field=field)
    return given


def restore_names(own: list[str], source: list[str]) -> list[str]:
    """A caller's names of a compiled graph's groups.

    Args:
        own: Canonical names from the worker; "group2" is group 2 of the source.
        source: The names of the source's groups.

    Raises:
        DecodeError: The caller named fewer groups than the source has.
    """
    found = []
    for name in own:
        match = _CANONICAL.match(name)
        if match and int(match[1]) >= len(source):
            raise DecodeError("too short", field="presentation.process_groups")
        found.append(source[int(match[1])] if match else name)
    return found
