"""Identifies operators and caches their schemas: torch builds a new object at each access."""

# ruff: noqa: SLF001 - the operators' own types are private, and there is no other way to a schema

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch

from lazyfx.v1 import graph_pb2 as pb


class Operator(NamedTuple):
    """The name of an operator in parts: `aten::add.Tensor` is aten, add, Tensor.

    Attributes:
        namespace: Its library.
        name: Its base name, which its overloads share.
        overload: The overload; empty for the whole packet, "default" for the unnamed one.
    """

    namespace: str
    name: str
    overload: str


class SchemaFacts(NamedTuple):
    """The facts in an operator's schema: its full and split name, and its argument names."""

    name: str
    operator: Operator
    arguments: tuple[str, ...]


@lru_cache(maxsize=4096)
def facts(overload: torch._ops.OpOverload) -> SchemaFacts:
    """The facts of one overload."""
    schema = overload._schema
    name = f"{schema.name}.{schema.overload_name or 'default'}"
    arguments = tuple(argument.name for argument in schema.arguments)
    return SchemaFacts(name, _parsed(schema.name, schema.overload_name or "default"), arguments)


def operator_of(target: object) -> Operator | None:
    """The operator name of an overload or packet, or None for another callable."""
    if isinstance(target, torch._ops.OpOverload):
        return facts(target).operator
    if isinstance(target, torch._ops.OpOverloadPacket):
        return _parsed(target._qualified_op_name, "")
    return None


def operator_of_row(row: pb.Target) -> Operator | None:
    """The operator name of a wire target, or None if it is something else."""
    if row.kind == pb.TARGET_KIND_OPERATOR:
        packet, _, overload = row.name.rpartition(".")
        return _parsed(packet, overload)
    return _parsed(row.name, "") if row.kind == pb.TARGET_KIND_OPERATOR_PACKET else None


def _parsed(packet: str, overload: str) -> Operator:
    namespace, _, name = packet.partition("::")
    return Operator(namespace, name, overload)


def argument_place(target: object, name: str) -> int | None:
    """Position of the operator's argument `name`, if it has one."""
    if isinstance(target, torch._ops.OpOverloadPacket):
        overloads = target.overloads()
        target = getattr(target, overloads[0]) if overloads else None
    if isinstance(target, torch._ops.OpOverload):
        names = facts(target).arguments
        return names.index(name) if name in names else None
    return None
