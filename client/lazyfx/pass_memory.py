"""Pass lists remembered with their encoded patterns, and the requests made of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import chain
from operator import is_
from typing import TypeAlias

import torch
from torch.fx import GraphModule

from lazyfx import memory, wire
from lazyfx.passes import USUAL, Modes, PassSpec, constants_of, messages
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

Passes: TypeAlias = "tuple[str | PassSpec, ...]"

# Pass lists remembered for each client, and requests for each of them; then anew.
_MOST_LISTS = 64
_MOST_REQUESTS = 4096


class PassList:
    """Passes as they travel.

    Args:
        passes: Names and specs. They are kept, so that they can be told by their ids.
        modes: How they run.

    Raises:
        UnsupportedGraphError: A pattern or replacement cannot go on the wire.
        LazyfxError: An entry is neither a string nor a PassSpec, or an option has a type
            that options cannot have.
    """

    def __init__(self, passes: Passes, modes: Modes = USUAL) -> None:
        self._passes = passes
        self._modes = modes
        self._specs = [each for each in passes if isinstance(each, PassSpec)]
        self._graphs = _graphs(self._specs)
        self._messages = messages(passes, memory.encode)
        self._settings = _settings(self._specs)
        self._encoded = [memory.recall(graph) for graph in self._graphs]
        replacements = chain.from_iterable(spec.replacements() for spec in self._specs)
        read = (constants_of(memory.encode(each)) for each in replacements)
        self._constants = list(chain.from_iterable(read))
        self._contents = _contents(self._constants)
        self._requests: dict[bytes, pb.CompileRequest] = {}

    @property
    def is_plain(self) -> bool:
        """Whether these are names only, which never change."""
        return not self._specs

    def is_current(self) -> bool:
        """Whether options and patterns are what they were; doubt counts as change."""
        graphs = _graphs(self._specs)
        return (
            len(graphs) == len(self._graphs)
            and all(map(is_, graphs, self._graphs))
            and all(known is not None and known.is_current() for known in self._encoded)
            and _settings(self._specs) == self._settings
            and _contents(self._constants) == self._contents
        )

    def request(self, encoded: wire.EncodedGraph) -> pb.CompileRequest:
        """The request for a graph, by digest. It is shared: copy before you change it."""
        request = self._requests.get(encoded.digest)
        if request is None:
            if len(self._requests) >= _MOST_REQUESTS:
                self._requests.clear()
            request = pb.CompileRequest(
                graph_digest=graph_pb2.Digest(sha256=encoded.digest, size_bytes=len(encoded.body)),
                passes=self._messages,
                eager=self._modes.eager,
                verify=self._modes.verify,
            )
            self._requests[encoded.digest] = request
        return request


class PassMemory:
    """Makes PassLists, each only when it is new or has changed."""

    def __init__(self) -> None:
        self._lists: dict[tuple[str | int | Modes, ...], PassList] = {}

    def get(self, passes: Passes, modes: Modes = USUAL, *, current: bool) -> PassList:
        """The list of these passes.

        Args:
            passes: Names and specs.
            modes: How they run.
            current: Look now whether a remembered list still is what it was; otherwise
                that is left to the caller.

        Raises:
            UnsupportedGraphError, LazyfxError: As PassList does.
        """
        key = (modes, *(each if isinstance(each, str) else id(each) for each in passes))
        known = self._lists.get(key)
        if known is None or (current and not known.is_plain and not known.is_current()):
            known = PassList(passes, modes)
            if len(self._lists) >= _MOST_LISTS:
                self._lists.clear()
            self._lists[key] = known
        return known


def _graphs(specs: Sequence[PassSpec]) -> list[GraphModule]:
    return list(chain.from_iterable(spec.graphs() for spec in specs))


def _contents(constants: Sequence[torch.Tensor]) -> list[bytes]:
    """What is in the tensors of replacements: buffers too, which graphs only describe."""
    return [hashlib.sha256(wire.tensor_bytes(each)).digest() for each in constants]


def _settings(specs: Sequence[PassSpec]) -> list[bytes]:
    """Names and options as they travel."""
    return [spec.without_graphs().message().SerializeToString() for spec in specs]
