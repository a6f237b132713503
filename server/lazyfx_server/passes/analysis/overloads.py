"""The facts in the schema of one operator, cached."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Graph

from lazyfx_server.passes.analysis import operator_facts as known
from lazyfx_server.passes.analysis.walk import target_name


@dataclass(frozen=True, slots=True)
class OverloadFacts:
    """The facts of an operator that do not depend on its arguments.

    Attributes:
        name: Its name without namespace and overload.
        written: (index, name) of the parameters that it writes.
        shared: (index, name) of the parameters whose storage a result shares.
        hidden_alias: A result may share any operand's storage, although the schema does not say so.
        random: It draws random numbers, unless its arguments disable that.
        effectful: It has side effects other than writes to operands.
        repeatable: Equal calls have equal results.
    """

    name: str
    written: tuple[tuple[int, str], ...]
    shared: tuple[tuple[int, str], ...]
    hidden_alias: bool
    random: bool
    effectful: bool
    repeatable: bool


@cache
def overload_facts(op: OpOverload[..., Any]) -> OverloadFacts:
    """Reads an operator's schema, tags and registrations."""
    schema = op._schema  # noqa: SLF001 - torch's own way to a schema
    name = target_name(op)
    infos = [r.alias_info for r in schema.returns]
    aliased = {storage for info in infos if info for storage in info.before_set}
    # A list of views is written `Tensor(a -> *) self ... -> Tensor(a)[]`; its own set is empty.
    lists_views = any(info is not None and not info.before_set for info in infos)
    parameters = [
        (index, parameter.name, parameter.alias_info)
        for index, parameter in enumerate(schema.arguments)
        if parameter.alias_info is not None
    ]
    return OverloadFacts(
        name=name,
        written=tuple((i, n) for i, n, info in parameters if info.is_write),
        shared=tuple(
            (i, n)
            for i, n, info in parameters
            if aliased & info.before_set or (lists_views and "*" in info.after_set)
        ),
        hidden_alias=any(info is None for info in infos) and known.returns_alias(op),
        random=known.is_tagged_random(op),
        effectful=op.namespace in known.EFFECTFUL_NAMESPACES
        or any(word in name for word in known.ASSERTING)
        or not schema.returns
        or (not schema.is_mutable and _torch_calls_impure(op)),
        repeatable=name not in known.UNINITIALIZED
        and torch.Tag.dynamic_output_shape not in op.tags
        and torch.Tag.data_dependent_output not in op.tags,
    )


def _torch_calls_impure(op: OpOverload[..., Any]) -> bool:
    """Whether the operator is registered with torch as effectful."""
    return Graph().create_node("call_function", op).is_impure(impure_random=False)
