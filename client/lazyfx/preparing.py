"""From what a caller hands over to a request, without any I/O."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch.utils.weak import WeakIdKeyDictionary

from lazyfx import memory, wire
from lazyfx.capture import Captured, Captures, Compilable, ExampleInputs
from lazyfx.errors import LazyfxError
from lazyfx.pass_memory import PassMemory, Requests
from lazyfx.passes import USUAL, Modes, Passes, listed
from lazyfx.status import BLOB_SUBJECT, VALUE_SUBJECT
from lazyfx.uploading import Blob
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2

# Below this size a graph goes along with its first request: a second round trip costs more.
INLINE_BYTES = 100_000


@dataclass(frozen=True, slots=True)
class Prepared:
    """A compile request, and what its result will be bound to.

    Attributes:
        captured: The caller's graph.
        encoded: The same on the wire.
        requests: How it is asked for.
        still_current: Tells whether the graph is unchanged since it was encoded; None when
            that is known already.
    """

    captured: Captured
    encoded: wire.EncodedGraph
    requests: Requests
    still_current: Callable[[], bool] | None


class Preparer:
    """Captures, encodes and remembers; one for each client."""

    def __init__(self) -> None:
        self._captures = Captures()
        self._passes = PassMemory()
        # By identity: tensors compare by value.
        self._digests: MutableMapping[torch.Tensor, tuple[tuple[object, ...], graph_pb2.Digest]] = (
            WeakIdKeyDictionary()
        )

    def prepare(
        self,
        what: Compilable,
        passes: Passes = (),
        example_inputs: ExampleInputs = None,
        *,
        modes: Modes = USUAL,
        fresh: bool = False,
    ) -> Prepared:
        """Make a request.

        Args:
            what: A GraphModule, an ExportedProgram, or a Module with example inputs.
            passes: Passes to run, in order, or their spelling.
            example_inputs: For a Module.
            modes: How the passes run.
            fresh: Encode again even if the graph was encoded before. Otherwise the
                remembered digest is used at once, and `still_current` is left to be asked
                while the request is under way.

        Raises:
            UnsupportedGraphError: The graph cannot go on the wire; names the node.
            LazyfxError: It cannot be captured, or a pass is malformed.
        """
        captured = self._captures.capture(what, example_inputs)
        module = captured.module
        remembered = None if fresh else memory.recall(module)
        requests_of = self._passes.get(listed(passes), modes).requests
        if remembered is None:
            encoded, still_current = memory.encode(module), None
        else:
            encoded, still_current = remembered.encoded, remembered.is_current
        requests = requests_of(encoded)
        prepared = Prepared(captured, encoded, requests, still_current)
        if requests.reads:
            # Tensors change where they are: no token stands for their values.
            with_values, _ = self.supply(prepared, requests.whole, requests.reads)
            prepared = replace(prepared, requests=Requests(with_values))
        return prepared

    def supply(
        self, prepared: Prepared, request: pb.CompileRequest, subjects: Sequence[str]
    ) -> tuple[pb.CompileRequest, list[Blob]]:
        """What the server said is missing: a request that has it, and blobs to send first.

        Raises:
            LazyfxError: The server asks for something that this graph does not have.
        """
        blobs: list[Blob] = []
        full = pb.CompileRequest()
        full.CopyFrom(request)
        wanted_blobs = set()
        for subject in subjects:
            if subject.startswith(VALUE_SUBJECT):
                graph, attribute = map(int, subject.removeprefix(VALUE_SUBJECT).split("/"))
                content = self.content_digest(self._tensor(prepared, graph, attribute))
                full.values.add(graph=graph, attribute=attribute, content=content)
            elif subject.startswith(BLOB_SUBJECT):
                wanted_blobs.add(bytes.fromhex(subject.removeprefix(BLOB_SUBJECT)))
            else:
                raise LazyfxError(f"the server asks for {subject!r}, which this client cannot send")
        if prepared.encoded.digest in wanted_blobs:
            full.graph.CopyFrom(prepared.encoded.message())
        for binding in full.values:
            tensor = self._tensor(prepared, binding.graph, binding.attribute)
            blobs.append(Blob(binding.content, partial(wire.tensor_bytes, tensor)))
        return full, blobs

    def content_digest(self, tensor: torch.Tensor) -> graph_pb2.Digest:
        """Digest of a tensor's bytes, remembered until the tensor changes."""
        if tensor.is_inference():  # nothing counts the changes of such a tensor
            return wire.content_digest(tensor)
        looks = (tensor.data_ptr(), tensor._version, tensor.shape, tensor.stride(), tensor.dtype)  # noqa: SLF001
        known = self._digests.get(tensor)
        if known is None or known[0] != looks:
            known = (looks, wire.content_digest(tensor))
            self._digests[tensor] = known
        return known[1]

    @staticmethod
    def _tensor(prepared: Prepared, graph: int, attribute: int) -> torch.Tensor:
        try:
            tensor = prepared.encoded.attributes[graph][attribute]
        except IndexError:
            tensor = None
        if not isinstance(tensor, torch.Tensor):
            raise LazyfxError(
                f"the server asks for values of attribute {attribute} of graph {graph}, "
                "which is not a tensor of this graph"
            )
        return tensor
