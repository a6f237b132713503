"""A graph with strings replaced by tokens, which is what a native compiler sees.

Inductor writes strings into C++ and Python source. Node, attribute and symbol names of a decoded
graph are the server's own (`n0`, `a0`, `s0`), and targets are looked up in the allow-table. So the
caller's strings in a graph are its string literals, at any depth, and its keyword names.
"""

# ruff: noqa: SIM905 - long lists of names are most readable as words

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from google.protobuf.message import Message

from lazyfx.shared.native.text_tokens import token_of
from lazyfx.shared.wire.targets.operator_schemas import operator_of_row
from lazyfx.v1 import graph_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile
from lazyfx_server.jobs.native.words import is_equation, is_plain, is_word

# Operators whose strings are for people: always tokens, even if they happen to be known words.
_MESSAGES: Final = re.compile(
    r"assert|_check|print|record_function|warn|log_api|hooks_disable|tracepoint|annotate"
)
_NAMESPACES: Final = frozenset(
    "aten prims prim profiler debugprims inductor _c10d_functional c10d_functional "
    "_c10d_functional_autograd c10d symm_mem quantized_decomposed onednn mkldnn mkldnn_prepacked "
    "mkl quantized sparse export torch_nn rngprims".split()
)
_KEYWORD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}", re.ASCII)


def without_texts(body: pb.GraphBody) -> pb.GraphBody:
    """A copy of a graph in which each string that is not one of torch's own words is a token.

    Args:
        body: A checked graph.

    Raises:
        CannotCompile: An operator of another library takes a string that is not a plain word, or a
            keyword is not an identifier.
    """
    found = pb.GraphBody()
    found.CopyFrom(body)
    return _TextReplacer(found).body


class _TextReplacer:
    """Replaces the strings of one graph, in place."""

    def __init__(self, body: pb.GraphBody) -> None:
        self.body = body
        self._given = list(body.strings)
        self._places: dict[str, int] = {}
        # The behaviour of such an operator may depend on the string, and its vocabulary is unknown.
        self._others = sorted(
            row.name
            for row in body.targets
            if (operator := operator_of_row(row)) and operator.namespace not in _NAMESPACES
        )
        del body.strings[:]
        for call in body.calls:
            name = body.targets[call.target - 1].name if call.target else ""
            for keyword in call.kwargs:
                keyword.name = self._place(self._keyword(self._given[keyword.name]))
            self._replace(call, name)
        for graph in body.graphs:
            for attribute in graph.attributes:
                self._replace(attribute, "")

    def _replace(self, message: Message, target: str) -> None:
        for argument in _arguments(message):
            if argument.WhichOneof("kind") == "text":
                argument.text = self._place(self._replaced(self._given[argument.text], target))

    def _replaced(self, text: str, target: str) -> str:
        if _MESSAGES.search(target) and text:
            return token_of(text)
        if is_word(text) or ("einsum" in target and is_equation(text)):
            return text
        if not self._others:
            return token_of(text)
        if not is_plain(text):
            raise CannotCompile(
                f"the graph has the operator {self._others[0]} and a text that is not a plain "
                "word; texts of callers are not written into native source. Use a word of letters "
                "and digits, or a number"
            )
        return text

    def _keyword(self, name: str) -> str:
        if not _KEYWORD.fullmatch(name):
            raise CannotCompile("the name of a keyword argument is not an identifier")
        return name

    def _place(self, text: str) -> int:
        place = self._places.setdefault(text, len(self._places))
        if place == len(self.body.strings):
            self.body.strings.append(text)
        return place


def _arguments(message: Message) -> Iterator[pb.Argument]:
    """Every argument inside a message, however deep."""
    if isinstance(message, pb.Argument):
        yield message
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if isinstance(value, _REPEATED) else (value,):
            yield from _arguments(part)


_REPEATED: Final = (type(pb.GraphBody().calls), list)
