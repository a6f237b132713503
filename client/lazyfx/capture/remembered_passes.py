"""Caches pass lists as messages, and the requests built from them."""

from __future__ import annotations

from dataclasses import dataclass, field

from lazyfx.shared import wire
from lazyfx.shared.pass_specs import DEFAULT_MODES, Modes, PassTuple, messages
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# Maximum cached pass lists per client, and requests per list; then all are dropped.
_MAX_LISTS = 64
_MAX_REQUESTS = 4096


@dataclass(slots=True)
class RequestForms:
    """The forms of one compile request.

    Attributes:
        whole: Digest of the graph, passes, modes. Shared: copy it before changing it.
        short: The servers' tokens for `whole`, by the replica that issued each.
        reads: The values that the server has requested ("values/<graph>/<attribute>").
    """

    whole: pb.CompileRequest
    short: dict[int, pb.CompileRequest] = field(default_factory=dict)
    reads: tuple[str, ...] = ()


class PassList:
    """Passes as messages.

    Args:
        passes: As `normalize` returns them.
        modes: Modes in which they run.
    """

    def __init__(self, passes: PassTuple, modes: Modes = DEFAULT_MODES) -> None:
        self._modes = modes
        self._messages = messages(passes)
        self._requests: dict[bytes, RequestForms] = {}

    def requests(self, encoded: wire.EncodedGraph) -> RequestForms:
        """The requests for a graph."""
        requests = self._requests.get(encoded.digest)
        if requests is None:
            if len(self._requests) >= _MAX_REQUESTS:
                self._requests.clear()
            whole = pb.CompileRequest(
                graph_digest=graph_pb2.Digest(sha256=encoded.digest, size_bytes=len(encoded.body)),
                passes=self._messages,
                eager=self._modes.eager,
                verify=self._modes.verify,
                priority=self._modes.priority,  # type: ignore[arg-type]
            )
            requests = self._requests[encoded.digest] = RequestForms(whole)
        return requests


class PassListCache:
    """Creates and caches PassLists."""

    def __init__(self) -> None:
        self._lists: dict[tuple[bytes | Modes, ...], PassList] = {}

    def get(self, passes: PassTuple, modes: Modes = DEFAULT_MODES) -> PassList:
        """The PassList of these passes.

        Args:
            passes: As `normalize` returns them.
            modes: Modes in which they run.
        """
        key: tuple[bytes | Modes, ...] = (modes, *(spec.identity for spec in passes))
        known = self._lists.get(key)
        if known is None:
            known = PassList(passes, modes)
            if len(self._lists) >= _MAX_LISTS:
                self._lists.clear()
            self._lists[key] = known
        return known
