"""From the caller's argument to a request, without I/O."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.weak import WeakIdKeyDictionary

from lazyfx.answers.known_passes import reads_values
from lazyfx.capture import remembering
from lazyfx.capture.blob import Blob
from lazyfx.capture.capturing import CapturedGraph, Compilable, ExampleInputs, GraphCapturer
from lazyfx.capture.remembered_passes import PassListCache, RequestForms
from lazyfx.errors import LazyfxError, ProtocolError, ValuesRefusedError
from lazyfx.shared import wire
from lazyfx.shared.answers.answer_bounds import DEFAULT_BOUNDS, AnswerBounds
from lazyfx.shared.missing import BLOB_SUBJECT, VALUE_SUBJECT
from lazyfx.shared.pass_specs import DEFAULT_MODES, Modes, PassTuple
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# Below this size a graph is sent with its first request: a second round trip would cost more.
INLINE_BYTES = 100_000
# Above this size, including names, the body is uploaded in chunks and the names are not sent,
# because servers bound the size of a message.
IN_ONE_MESSAGE_BYTES = 2**21


@dataclass(frozen=True, slots=True)
class Prepared:
    """A compile request, and the graph to which its result will be bound.

    Attributes:
        captured: The caller's graph.
        encoded: The encoded graph.
        requests: The forms of the request.
        is_unchanged: Returns whether the graph is unchanged since it was encoded; None if that is
            already known.
        send_values: Send values of tensors even to passes that are not known to read them.
    """

    captured: CapturedGraph
    encoded: wire.EncodedGraph
    requests: RequestForms
    is_unchanged: Callable[[], bool] | None
    send_values: bool = False

    @property
    def may_send_values(self) -> bool:
        """Whether the server may request values of the graph's tensors."""
        return self.send_values or reads_values(self.requests.whole.passes)

    @property
    def fits_one_message(self) -> bool:
        """Whether the graph fits into the request message."""
        encoded = self.encoded
        return len(encoded.body) + encoded.presentation.ByteSize() <= IN_ONE_MESSAGE_BYTES


class Preparer:
    """Captures, encodes and caches graphs; one per client. Threads may share it.

    Args:
        bounds: Bounds on the values that a server may request.
    """

    def __init__(self, bounds: AnswerBounds = DEFAULT_BOUNDS) -> None:
        self._bounds = bounds
        self._captures = GraphCapturer()
        # Torch itself breaks when two threads trace at a time. A graph that is captured may be a
        # handle, whose client may need this one.
        self._capturing = threading.RLock()
        self._passes = PassListCache()
        # By identity: tensors compare by value.
        self._digests: MutableMapping[torch.Tensor, tuple[tuple[object, ...], graph_pb2.Digest]] = (
            WeakIdKeyDictionary()
        )
        self._digests_lock = threading.Lock()

    def prepare(
        self,
        what: Compilable,
        passes: PassTuple = (),
        example_inputs: ExampleInputs = None,
        *,
        modes: Modes = DEFAULT_MODES,
        fresh: bool = False,
        send_values: bool = False,
    ) -> Prepared:
        """Create a request.

        Args:
            what: A GraphModule, an ExportedProgram, or a Module with example inputs.
            passes: Passes to run, in order, as `normalize` returns them.
            example_inputs: For a Module.
            modes: Modes in which the passes run.
            fresh: Encode again even if the graph was encoded before. Otherwise the cached digest is
                used at once, and `is_unchanged` is to be checked during the request.
            send_values: Send tensor values to any pass for which the server requests them.

        Raises:
            UnsupportedGraphError: The format does not support the graph; names the node.
            LazyfxError: It cannot be captured.
        """
        with self._capturing:
            captured = self._captures.capture(what, example_inputs)
            module = captured.module
            remembered = None if fresh else remembering.cached_encoding(module)
            requests_of = self._passes.get(passes, modes).requests
            if remembered is None:
                encoded, is_unchanged = remembering.encode(module), None
            else:
                encoded, is_unchanged = remembered.encoded, remembered.is_unchanged
            requests = requests_of(encoded)
        return self.with_values(Prepared(captured, encoded, requests, is_unchanged, send_values))

    def with_values(self, prepared: Prepared) -> Prepared:
        """The same request with the current values that passes are known to read."""
        requests = prepared.requests
        if requests.reads and prepared.may_send_values:
            # Tensors change in place, so no token can represent their values.
            with_values, _ = self.provide_missing(prepared, requests.whole, requests.reads)
            return replace(prepared, requests=RequestForms(with_values))
        return prepared

    def provide_missing(
        self, prepared: Prepared, request: pb.CompileRequest, subjects: Sequence[str]
    ) -> tuple[pb.CompileRequest, list[Blob]]:
        """Provide what the server said is missing: a new request, and blobs to upload first.

        Raises:
            ValuesRefusedError: The server requests values, but no pass of the request reads any.
            ProtocolError: The server requests something that this graph does not have, something
                twice, or too much.
            LazyfxError: Values named in the request have changed since.
        """
        full = pb.CompileRequest()
        full.CopyFrom(request)
        places: list[tuple[int, int]] = []
        wanted_blobs: set[bytes] = set()
        for subject in subjects:
            if subject.startswith(VALUE_SUBJECT):
                places.append(_place(subject))
            elif subject.startswith(BLOB_SUBJECT):
                wanted_blobs.add(_digest(subject))
            else:
                raise ProtocolError(
                    f"the server asks for {subject!r}, which this client cannot send"
                )
        self._check_places(prepared, places)
        bound = {(binding.graph, binding.attribute) for binding in full.values}
        for graph, attribute in places:
            if (graph, attribute) not in bound:
                content = self.content_digest(self._tensor(prepared, graph, attribute))
                full.values.add(graph=graph, attribute=attribute, content=content)
        known = {prepared.encoded.digest, *(binding.content.sha256 for binding in full.values)}
        if not wanted_blobs <= known:
            raise ProtocolError("the server asks for a blob that this request does not name")
        blobs = []
        if prepared.encoded.digest in wanted_blobs:
            body = prepared.encoded.body
            if prepared.fits_one_message:
                full.graph.CopyFrom(prepared.encoded.message())
            else:
                blobs.append(Blob(full.graph_digest, lambda: memoryview(body)))
        for binding in full.values:
            tensor = self._tensor(prepared, binding.graph, binding.attribute)
            if binding.content.sha256 in wanted_blobs and (
                self.content_digest(tensor) != binding.content
            ):
                raise LazyfxError(
                    "the server has lost the values that this was compiled with, and the tensors "
                    "have changed since; compile again"
                )
            blobs.append(Blob(binding.content, partial(wire.tensor_bytes, tensor)))
        return full, blobs

    def _check_places(self, prepared: Prepared, places: Sequence[tuple[int, int]]) -> None:
        """Check that the server may request these values, before reading any of them."""
        if places and not prepared.may_send_values:
            raise ValuesRefusedError(
                f"the server asks for the values of {len(places)} tensors, but no pass of the "
                "request is known to read values: nothing was sent. If a pass of a plugin or of "
                "the operator's own pipeline needs them, allow it with send_values=True "
                "(--send-values)"
            )
        if len(set(places)) != len(places):
            raise ProtocolError("the server asks for one tensor twice")
        tensors = [self._tensor(prepared, *place) for place in places]
        size = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        if size > self._bounds.max_value_bytes:
            raise ProtocolError(
                f"the server asks for {size} bytes of tensors; at most "
                f"{self._bounds.max_value_bytes} are allowed (max_value_bytes)"
            )

    def content_digest(self, tensor: torch.Tensor) -> graph_pb2.Digest:
        """Digest of a tensor's bytes, cached until the tensor changes."""
        if tensor.is_inference():  # such a tensor has no version counter
            return wire.content_digest(tensor)
        looks = (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype)  # noqa: SLF001
        with self._digests_lock:
            known = self._digests.get(tensor)
        if known is None or known[0] != looks:
            known = (looks, wire.content_digest(tensor))
            with self._digests_lock:
                self._digests[tensor] = known
        return known[1]

    @staticmethod
    def _tensor(prepared: Prepared, graph: int, attribute: int) -> torch.Tensor:
        rows = prepared.encoded.attributes
        row = rows[graph] if graph < len(rows) else ()
        tensor = row[attribute] if attribute < len(row) else None
        if not isinstance(tensor, torch.Tensor):
            raise ProtocolError(
                f"the server asks for values of attribute {attribute} of graph {graph}, "
                "which is not a tensor of this graph"
            )
        return tensor


# Indices of graphs and attributes; in protobuf they have 32 bits.
_PLACE = re.compile(r"(0|[1-9][0-9]{0,9})/(0|[1-9][0-9]{0,9})", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


def _place(subject: str) -> tuple[int, int]:
    match = _PLACE.fullmatch(subject.removeprefix(VALUE_SUBJECT))
    if match is None:
        raise ProtocolError(f"the server asks for {subject!r}, which names no tensor")
    return int(match[1]), int(match[2])


def _digest(subject: str) -> bytes:
    digits = subject.removeprefix(BLOB_SUBJECT)
    if not _SHA256.fullmatch(digits):
        raise ProtocolError(f"the server asks for {subject!r}, which is not a digest")
    return bytes.fromhex(digits)
