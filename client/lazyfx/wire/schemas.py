"""Facts of operator schemas, read once: torch builds a new object at each access."""

# ruff: noqa: SLF001 - the operators' own types are private, and there is no other way to a schema

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class SchemaFacts(NamedTuple):
    """What the schema of an operator says: its full name and those of its arguments."""

    name: str
    arguments: tuple[str, ...]


@lru_cache(maxsize=4096)
def facts(overload: torch._ops.OpOverload) -> SchemaFacts:
    """The facts of one overload."""
    schema = overload._schema
    name = f"{schema.name}.{schema.overload_name or 'default'}"
    return SchemaFacts(name, tuple(argument.name for argument in schema.arguments))


def argument_place(target: object, name: str) -> int | None:
    """Position of the argument of an operator that is called `name`, if it has one."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        overloads = target.overloads()
        target = getattr(target, overloads[0]) if overloads else None
    if isinstance(target, torch._ops.OpOverload):
        names = facts(target).arguments
        return names.index(name) if name in names else None
    return None
