"""Whether the arguments of operators fit their schemas: names, places and kinds.

Works on the table of distinct calls, so that a graph of a thousand equal calls costs one check.
What flows through a hole (an operand) is not known here and fits every place; torch checks it
when it runs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2
from lazyfx.wire.targets import find
from lazyfx_server.security.places import first_call

Argument: TypeAlias = graph_pb2.Argument
Fits: TypeAlias = Callable[[Argument], bool]

_OPERATORS = frozenset({graph_pb2.TARGET_KIND_OPERATOR, graph_pb2.TARGET_KIND_OPERATOR_PACKET})
# Kinds whose value is known only when a graph runs.
_HOLES = frozenset({"operand", "expression"})
_NUMBERS = frozenset({"boolean", "integer", "floating", "complex"})
_KINDS: dict[str, frozenset[str]] = {
    # torch makes tensors of numbers.
    "Tensor": _NUMBERS,
    "number": _NUMBERS,
    "int": frozenset({"boolean", "integer", "dtype", "layout", "memory_format"}),
    "float": frozenset({"boolean", "integer", "floating"}),
    "complex": _NUMBERS,
    "bool": frozenset({"boolean", "integer"}),
    "str": frozenset({"text", "device_text", "process_group"}),
    "Device": frozenset({"device", "device_text"}),
    "ScalarType": frozenset({"dtype"}),
    "Layout": frozenset({"layout"}),
    "MemoryFormat": frozenset({"memory_format"}),
    "QScheme": frozenset(),
    "Generator": frozenset(),
    "Stream": frozenset(),
    "Storage": frozenset(),
}
_SEQUENCES = ("list", "tuple", "size")
_WRAPPED = re.compile(r"(Optional|List)\[(.*)\]")


def check_schemas(body: graph_pb2.GraphBody) -> None:
    """Check every call of an operator against what the operator takes.

    Raises:
        DecodeError: One cannot fit; names the call, the node and the argument.
    """
    for i, call in enumerate(body.calls):
        if call.opcode != graph_pb2.OPCODE_CALL_FUNCTION:
            continue
        target = body.targets[call.target - 1]
        if target.kind not in _OPERATORS:
            continue
        try:
            schemas = _schemas(target.kind, target.name)
        except DecodeError as error:
            field, node = first_call(body, i)
            raise DecodeError(error.reason, field=field, node=node) from error
        reasons = [_misfit(body, call, schema) for schema in schemas]
        if reasons and None not in reasons:
            told = reasons[0] if len(reasons) == 1 else "fit none of its overloads"
            field, node = first_call(body, i)
            raise DecodeError(
                f"the arguments of {target.name[:200]} {told}; its schemas are in "
                "torch.ops, e.g. print(torch.ops.aten.add.Tensor._schema)",
                field=field,
                node=node,
            )


@functools.lru_cache(maxsize=4096)
def _schemas(kind: int, name: str) -> tuple[_Schema, ...]:
    """The schemas of an operator, or of all overloads of a packet."""
    found = find(kind, name)
    if isinstance(found, torch._ops.OpOverload):  # noqa: SLF001 - the operators' own type
        return (_Schema(found._schema),)  # noqa: SLF001 - there is no public way to a schema
    if isinstance(found, torch._ops.OpOverloadPacket):  # noqa: SLF001
        overloads = [getattr(found, overload) for overload in found.overloads()]
        return tuple(_Schema(overload._schema) for overload in overloads)  # noqa: SLF001
    return ()


class _Schema:
    """What one overload takes.

    Attributes:
        places: Most positional arguments.
        names: Arguments in order.
        fits: What each takes, by name.
        required: Those without a default.
    """

    def __init__(self, schema: torch.FunctionSchema) -> None:
        arguments = schema.arguments
        self.names = [argument.name for argument in arguments]
        self.places = sum(not argument.kwarg_only for argument in arguments)
        self.fits = {a.name: _fits(str(a.real_type)) for a in arguments}
        self.required = {a.name for a in arguments if not a.has_default_value()}


def _misfit(body: graph_pb2.GraphBody, call: graph_pb2.Call, schema: _Schema) -> str | None:
    """Why a call does not fit a schema, if so."""
    if len(call.args) > schema.places:
        return f"are {len(call.args)}, and it takes {schema.places} by place"
    given = dict(zip(schema.names, call.args, strict=False))
    for row in call.kwargs:
        name = body.strings[row.name]
        if name not in schema.fits:
            return f"name {name[:100]!r}, which it does not take"
        if name in given:
            return f"give {name!r} twice"
        given[name] = row.value
    if missing := schema.required - given.keys():
        return f"lack {', '.join(sorted(missing))}"
    for name, argument in given.items():
        if not schema.fits[name](argument):
            return f"give {name!r} as {argument.WhichOneof('kind')}, which it does not take"
    return None


@functools.lru_cache(maxsize=256)
def _fits(type_name: str) -> Fits:
    """Whether an argument can be of a schema's type."""
    wrapped = _WRAPPED.fullmatch(type_name)
    if wrapped is None:
        return _fits_plain(_KINDS.get(type_name))
    inner = _fits(wrapped[2])
    if wrapped[1] == "Optional":
        return lambda argument: argument.WhichOneof("kind") == "none" or inner(argument)

    def fits_list(argument: Argument) -> bool:
        kind = argument.WhichOneof("kind")
        if kind in _SEQUENCES:
            items: Sequence[Argument] = getattr(argument, kind).items
            return all(inner(item) for item in items)
        # One number stands for a list of equal ones, as in a kernel size.
        return inner(argument)

    return fits_list


def _fits_plain(kinds: frozenset[str] | None) -> Fits:
    if kinds is None:  # a type of another library: only torch can tell
        return lambda _: True
    allowed = kinds | _HOLES
    return lambda argument: argument.WhichOneof("kind") in allowed
