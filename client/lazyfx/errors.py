"""The errors that lazyfx raises, as a tree.

::

    LazyfxError
    ├── AddressError               text that is not the address of a server
    ├── UnsupportedGraphError      the format does not support the graph; names the node
    ├── DecodeError                bytes that are not a graph in canonical form
    │   └── ProtocolError              the server sent what it may not send, or too much of it
    ├── ValuesRefusedError         the server asked for values of tensors; none were sent
    ├── IncompatibleError          artifacts of the server would not run on this machine
    ├── ClosedError                the client was closed before the call, or while it was waiting
    ├── ForkedProcessError         this process was forked after a client had been opened
    ├── ArtifactError              an artifact did not arrive whole, or is not what it claims
    │   └── UntrustedArtifactError     not signed with a trusted key; it was not opened
    │       └── UntrustedServerError       nothing that this server signs would be opened
    └── ServiceError               the server answered with a gRPC status
        ├── InvalidRequestError        INVALID_ARGUMENT: names the field and the remedy
        ├── PreconditionError          FAILED_PRECONDITION, OUT_OF_RANGE
        │   └── MissingBlobsError          send these blobs or values and try again
        ├── NotFoundError              NOT_FOUND
        ├── DeniedError                UNAUTHENTICATED, PERMISSION_DENIED
        ├── OverloadedError            RESOURCE_EXHAUSTED; may say when to try again
        ├── UnavailableError           UNAVAILABLE: no server, or it is draining
        ├── TimedOutError              DEADLINE_EXCEEDED
        └── ServerFaultError           INTERNAL, UNKNOWN, DATA_LOSS and the rest
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from typing_extensions import Self


class LazyfxError(Exception):
    """Base class of all errors that lazyfx raises.

    The attributes contain all information; the message is built from them when it is shown. Errors
    can be copied and pickled.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # Do not call the class: keyword arguments are not in `args`.
        return _restored, (type(self), self.args, self.__dict__)


def _restored(kind: type[LazyfxError], args: tuple[Any, ...], state: dict[str, Any]) -> LazyfxError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(state)
    return error


class AddressError(LazyfxError):
    """Invalid address of a server; the message says what is valid and what was probably meant."""


class UnsupportedGraphError(LazyfxError):
    """A graph contains something that the wire format does not support.

    Attributes:
        node: Name of the node at fault, or None if the graph as a whole is.
        attribute: Path of the attribute at fault, which the node reads, or None.
        reason: What is not supported.
        remedy: What the caller can do about it.
    """

    def __init__(
        self,
        reason: str,
        *,
        node: str | None = None,
        attribute: str | None = None,
        remedy: str = "",
    ) -> None:
        super().__init__(reason)
        self.node = node
        self.attribute = attribute
        self.reason = reason
        self.remedy = remedy

    def within(self, *, node: str | None = None, attribute: str | None = None) -> Self:
        """The same error with its location filled in where it is missing."""
        placed = copy.copy(self)
        placed.node = self.node or node
        placed.attribute = self.attribute or attribute
        return placed

    def called(self, name: str) -> Self:
        """The same error with the name that the caller uses for the node."""
        placed = copy.copy(self)
        placed.node = name
        return placed

    def __str__(self) -> str:
        where = f"node {self.node!r}: " if self.node else ""
        what = f"attribute {self.attribute!r}: " if self.attribute else ""
        return where + what + self.reason + (f"; {self.remedy}" if self.remedy else "")


class DecodeError(LazyfxError):
    """Bytes that are not a graph in canonical form.

    Attributes:
        reason: What is wrong, without field and node.
        field: Path of the field at fault within the graph message.
        node: Zero-based index of the node at fault in its graph, or None.
        graph: Index of that graph, 0 for the outermost one, or None if unknown.
        name: The caller's name of the node, or None if unknown.
    """

    def __init__(
        self, reason: str, *, field: str = "", node: int | None = None, graph: int | None = None
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.field = field
        self.node = node
        self.graph = graph
        self.name: str | None = None

    def within(self, field: str = "", *, node: int | None = None, graph: int | None = None) -> Self:
        """The same error with the location of an enclosing field.

        Args:
            field: Path of the enclosing field.
            node: The node that was being read, for an error without a node.
            graph: The graph that was being read, for an error without a graph.
        """
        placed = copy.copy(self)
        placed.field = joined(field, self.field)
        placed.node = node if self.node is None else self.node
        placed.graph = graph if self.graph is None else self.graph
        return placed

    def called(self, name: str) -> Self:
        """The same error with the name that the caller uses for the node."""
        placed = copy.copy(self)
        placed.name = name
        return placed

    @property
    def description(self) -> str:
        """The message with the node, but without the field."""
        if self.node is None:
            return self.reason
        inside = f" of graph {self.graph}" if self.graph else ""
        name = f", called {self.name!r}" if self.name else ""
        return f"{self.reason} (node {self.node}{inside}{name})"

    def __str__(self) -> str:
        return f"{self.field}: {self.description}" if self.field else self.description


def joined(outer: str, inner: str) -> str:
    """The path of a field nested in another one."""
    return f"{outer}.{inner}" if outer and inner else outer or inner


class ProtocolError(DecodeError):
    """The server violated the protocol: malformed, out of order, or over a bound."""


class ValuesRefusedError(LazyfxError):
    """The server requested values of tensors that no pass of the request is known to read.

    Nothing was sent. Passes other than lazyfx's own may read values: allow them with
    `send_values=True`.
    """


class IncompatibleError(LazyfxError):
    """Artifacts of the server would not run on this machine; the message says what differs."""


class ClosedError(LazyfxError):
    """The client was closed before this call was made, or while it was waiting."""

    def __init__(self, message: str = "the client is closed; connect again") -> None:
        super().__init__(message)


class ForkedProcessError(LazyfxError):
    """This process was forked after a client had been opened, and gRPC does not survive that."""

    def __init__(
        self,
        message: str = (
            "this process was forked after a lazyfx client had been opened in its parent, and gRPC "
            "does not survive a fork; open the client after the fork, in the child only, or start "
            'the process with multiprocessing\'s "spawn" or "forkserver"'
        ),
    ) -> None:
        super().__init__(message)


class ArtifactError(LazyfxError):
    """An artifact did not arrive whole, or is not what it claims to be."""


class UntrustedArtifactError(ArtifactError):
    """An artifact whose signature is missing, expired, or by a key that is not trusted."""


class UntrustedServerError(UntrustedArtifactError):
    """Artifacts of this server would not be opened, so none was requested; says how to trust it."""


@dataclass(frozen=True)
class FieldViolation:
    """One field of a request that the server refused: its path, and what to do.

    Attributes:
        field: Its path, e.g. "graph.calls[3].opcode".
        description: What is wrong with it, and what to do.
        node: The caller's name of the node at fault; empty if there is none.
    """

    field: str
    description: str
    node: str = ""


class ServiceError(LazyfxError):
    """The server answered a call with an error status.

    Attributes:
        code: Name of the gRPC status code, e.g. "INVALID_ARGUMENT".
        reason: The server's message.
        violations: Fields that were refused, for errors that name fields.
        retry_after: Seconds after which a retry may succeed, or None.
    """

    def __init__(
        self,
        reason: str,
        *,
        code: str,
        violations: Sequence[FieldViolation] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.code = code
        self.violations = tuple(violations)
        self.retry_after = retry_after

    @property
    def field(self) -> str:
        """Path of the first field that was refused; empty if the server named none."""
        return next((violation.field for violation in self.violations), "")

    @property
    def node(self) -> str | None:
        """The caller's name of the node at fault, or None if there is none."""
        return next((v.node for v in self.violations if v.node), None)

    def __str__(self) -> str:
        return f"{self.code}: {self.reason}"


class InvalidRequestError(ServiceError):
    """INVALID_ARGUMENT: the request can never succeed unchanged."""


class PreconditionError(ServiceError):
    """FAILED_PRECONDITION or OUT_OF_RANGE: something that the request requires is missing."""


class MissingBlobsError(PreconditionError):
    """The server lacks something that it needs.

    Attributes:
        subjects: What to send before the retry: "blobs/<sha256 hex>" for a graph or a
            tensor, "values/<graph>/<attribute>" for a tensor that a pass reads,
            "requests/<token hex>" for the request that a token stood for.
    """

    def __init__(self, reason: str, *, code: str, subjects: Sequence[str]) -> None:
        super().__init__(reason, code=code)
        self.subjects = tuple(subjects)


class NotFoundError(ServiceError):
    """NOT_FOUND: the module is not, or no longer, in the cache."""


class DeniedError(ServiceError):
    """UNAUTHENTICATED or PERMISSION_DENIED."""


class OverloadedError(ServiceError):
    """RESOURCE_EXHAUSTED: a bound or a quota is exceeded; see `retry_after`."""


class UnavailableError(ServiceError):
    """UNAVAILABLE: no server answers at this address, or it is draining."""


class TimedOutError(ServiceError):
    """DEADLINE_EXCEEDED: no answer in the time allowed."""


class ServerFaultError(ServiceError):
    """INTERNAL, UNKNOWN, DATA_LOSS and every other status without its own class."""
