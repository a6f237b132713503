"""The error of the passes room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from lazyfx.errors import LazyfxError

# Whose mistake it is, in the words of worker.proto's JobErrorKind.
PassErrorKind = Literal["invalid", "limit", "precondition", "internal"]


class PassError(LazyfxError):
    """A pass cannot be made, or cannot run.

    Attributes:
        message: What is wrong and what to do about it.
        kind: Whose mistake it is.
        field: Path of the request field at fault, e.g. "passes[1].options.x".
        pass_name: The pass, or "".
        before: Names of the passes that ran before it.
        node: Name of the node at fault in the graph, or None.
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
    ) -> None:
        self.message = message
        self.kind: PassErrorKind = kind
        self.field = field
        self.pass_name = pass_name
        self.before = tuple(before)
        self.node = node
        super().__init__(self._text())

    def at(self, field: str, pass_name: str = "", before: Sequence[str] = ()) -> PassError:
        """The same error, placed in a request: `field` goes before its own field."""
        path = ".".join(part for part in (field, self.field) if part)
        return PassError(
            self.message,
            kind=self.kind,
            field=path,
            pass_name=pass_name or self.pass_name,
            before=before or self.before,
            node=self.node,
        )

    def _text(self) -> str:
        who = f"{self.pass_name}: " if self.pass_name else ""
        where = f"{self.field}: " if self.field else ""
        node = f" (node {self.node!r})" if self.node else ""
        after = f" (after {', '.join(self.before)})" if self.before else ""
        return f"{where}{who}{self.message}{node}{after}"
