"""Refuses what generated Python source cannot express, or only at excessive length.

torch.fx pastes names, keywords and literals into text. Calls that would not be the same
computation, or not Python at all, are refused here, once per distinct call.
"""

from __future__ import annotations

import keyword
import math
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence

from torch.fx.graph import inplace_methods, magic_methods

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.arguments.argument_kind import children
from lazyfx.shared.wire.names import MAX_NAME
from lazyfx.v1 import graph_pb2

MAX_SOURCE_BYTES = 128 * 2**20
"""Default bound on the size of a graph's source, estimated from its names and literals."""

# torch.fx removes such lines from the source that it generates.
_MARKER = re.compile(r"# COUNTER: \d")
_OPERATOR = "operator."
_SCALARS = frozenset({"none", "boolean", "integer", "floating", "complex"})
# Characters around an operand, such as ", "; minimum text of a literal.
_PUNCTUATION = 4


def check_placeholders(body: graph_pb2.GraphBody) -> None:
    """Check that the parameters of each graph are in an order that Python allows.

    Raises:
        DecodeError: One follows another that must be last; names the node.
    """
    arguments = {
        i: call for i, call in enumerate(body.calls) if call.opcode == graph_pb2.OPCODE_PLACEHOLDER
    }
    for number, columns in enumerate(body.graphs):
        try:
            _check_order(arguments, columns)
        except DecodeError as error:
            raise error.within(f"graphs[{number}]", graph=number) from None


def check_size(
    body: graph_pb2.GraphBody,
    literals: Sequence[int],
    presentation: graph_pb2.Presentation | None,
    most: int = MAX_SOURCE_BYTES,
) -> None:
    """Check that the source of a graph stays within its bound.

    A literal is written at each use of its call, and a name at each use of its node, so a short
    message can expand to a long text.

    Args:
        body: The graph.
        literals: `characters` of each of its calls.
        presentation: Its names.
        most: The bound, in bytes.

    Raises:
        DecodeError: It is too long.
    """
    graphs = presentation.graphs if presentation is not None else ()
    longest = max((len(stem) for graph in graphs for stem in graph.stems), default=0) + 10
    size = 0
    for columns in body.graphs:
        size += sum(map(literals.__getitem__, columns.calls))
        size += (longest + _PUNCTUATION) * (2 * len(columns.calls) + len(columns.operands))
    if size > most:
        raise DecodeError(
            f"its source could be {size} bytes long; at most {most} are allowed (setting "
            "max_source_bytes): "
            "pass large literals as tensors, and use shorter names",
            field="graphs",
        )


def characters(call: graph_pb2.Call, strings: Sequence[str]) -> int:
    """Approximate characters of a call's literals in source, without operands."""
    return sum(_weight(strings, argument) for argument in _arguments(call)) + _PUNCTUATION


def _arguments(call: graph_pb2.Call) -> Iterator[graph_pb2.Argument]:
    yield from call.args
    for row in call.kwargs:
        yield row.value


def _weight(strings: Sequence[str], argument: graph_pb2.Argument) -> int:
    text = argument.WhichOneof("kind") == "text"
    own = len(strings[argument.text]) if text else 0
    return own + _PUNCTUATION + sum(_weight(strings, child) for child in children(argument))


def unwritable_reason(
    call: graph_pb2.Call, target: tuple[int, str], strings: Sequence[str]
) -> str | None:
    """Why torch.fx cannot write a call as equivalent Python source, if so.

    Args:
        call: The call.
        target: Kind and name of its target.
        strings: The strings of its message.
    """
    for row in call.kwargs:
        name = strings[row.name]
        if not _is_keyword_name(name):
            return f"{name[:100]!r} is not the name of an argument"
    for argument in _arguments(call):
        if reason := _unwritable_literal(strings, argument):
            return reason
    if call.opcode == graph_pb2.OPCODE_CALL_METHOD:
        if not call.args or call.args[0].WhichOneof("kind") in _SCALARS:
            return "a method call needs an object"
    elif call.opcode == graph_pb2.OPCODE_CALL_FUNCTION:
        kind, called = target
        if kind == graph_pb2.TARGET_KIND_FUNCTION and called.startswith(_OPERATOR):
            return _unwritable_operator(called.removeprefix(_OPERATOR), call)
    return None


def _is_keyword_name(name: str) -> bool:
    return (
        len(name) <= MAX_NAME
        and name.isidentifier()
        and not keyword.iskeyword(name)
        and unicodedata.normalize("NFKC", name) == name
    )


def _unwritable_literal(strings: Sequence[str], argument: graph_pb2.Argument) -> str | None:
    kind = argument.WhichOneof("kind")
    if kind == "complex":
        value = argument.complex
        if not (math.isfinite(value.real) and math.isfinite(value.imaginary)):
            return "a complex number that is not finite; build it from two real numbers"
    elif kind == "expression":
        return (
            "a symbolic number as a literal, which Python cannot express; make it an input, or "
            "read it off one (torch.ops.aten.sym_size)"
        )
    elif kind == "text" and _MARKER.search(strings[argument.text]):
        return (
            "a string with '# COUNTER: <number>' in it, which torch.fx interprets as its own "
            "marker and removes; change the string"
        )
    reasons = (_unwritable_literal(strings, child) for child in children(argument))
    return next((reason for reason in reasons if reason), None)


def _unwritable_operator(name: str, call: graph_pb2.Call) -> str | None:
    """Check a Python operator: arguments that its syntax has no place for would be lost."""
    pattern = magic_methods.get(name) or inplace_methods.get(name)
    if pattern is None:
        return None
    count = pattern.count("{}")
    if call.kwargs or len(call.args) != count:
        return f"operator.{name} takes {count} positional arguments and no others"
    if name == "getitem" and call.args[0].WhichOneof("kind") in _SCALARS:
        return "operator.getitem cannot take an item of a number"
    if name in inplace_methods and call.args[0].WhichOneof("kind") != "operand":
        return f"operator.{name} changes its first argument, which is a literal here"
    return None


def _check_order(arguments: Mapping[int, graph_pb2.Call], columns: graph_pb2.GraphColumns) -> None:
    """Check the order: arguments without defaults, those with defaults, *args, **kwargs."""
    reached = 0
    numbers = columns.calls
    for node in [i for i, number in enumerate(numbers) if number in arguments]:
        call = arguments[numbers[node]]
        if call.stars:
            rank = 1 + call.stars
            allowed = rank > reached
        else:
            # After *args, arguments are keyword-only, and order does not matter.
            rank = 1 if call.args else 0
            allowed = reached == 2 or rank >= reached
            rank = max(rank, reached)
        if not allowed:
            raise DecodeError(
                "an argument follows one that must be last", field=f"calls[{node}]", node=node
            )
        reached = rank
