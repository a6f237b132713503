"""The error of the package `passes`."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

from typing_extensions import Self

from lazyfx.errors import LazyfxError, joined

# The kind of mistake, in the terms of worker.proto's JobErrorKind.
PassErrorKind = Literal["invalid", "limit", "precondition", "internal"]


class PassError(LazyfxError):
    """A pass cannot be created, or cannot run.

    Attributes:
        message: What is wrong and what to do about it.
        kind: The kind of mistake.
        field: Path of the request field at fault, e.g. "passes[1].options.x".
        pass_name: The pass, or "".
        before: Names of the passes that ran before it.
        node: Name of the node at fault, or None.
        graph: Path of the GraphModule that holds the node within the module that the pass was
            given, "" for that module itself; None if the node is in another graph, like a pattern,
            or in an unknown one.
    """

    def __init__(
        self,
        message: str,
        *,
        kind: PassErrorKind = "invalid",
        field: str = "",
        pass_name: str = "",
        before: Sequence[str] = (),
        node: str | None = None,
        graph: str | None = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.kind: PassErrorKind = kind
        self.field = field
        self.pass_name = pass_name
        self.before = tuple(before)
        self.node = node
        self.graph = graph

    def at(self, field: str, pass_name: str = "", before: Sequence[str] = ()) -> Self:
        """The same error with its position in a request: `field` is prepended to its own field."""
        placed = copy.copy(self)
        placed.field = joined(field, self.field)
        placed.pass_name = pass_name or self.pass_name
        placed.before = tuple(before) or self.before
        return placed

    def of_node(self, name: str | None, graph: str | None) -> Self:
        """The same error with the name of the node at fault and the path of its graph."""
        placed = copy.copy(self)
        placed.node, placed.graph = name, graph
        return placed

    @property
    def description(self) -> str:
        """The message with pass and node, but without the field."""
        who = f"{self.pass_name}: " if self.pass_name else ""
        node = f" (node {self.node!r})" if self.node else ""
        after = f" (after {', '.join(self.before)})" if self.before else ""
        return f"{who}{self.message}{node}{after}"

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description
