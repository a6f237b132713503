"""Bounds that requests are held to before anything is done for them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lazyfx.errors import DecodeError, joined
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.wire.format import MAX_DEPTH, MAX_EXPRESSION_TREE
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.passes.pass_requests import placed_specs
from lazyfx_server.security.graph_bounds import GraphBounds
from lazyfx_server.v1 import worker_pb2 as worker

_DIGEST_BYTES = 32

# Bounds that belong to the format; a setting for them would serve no purpose.
MAX_NAME_BYTES = 256
"""Longest name of a pass, an option, a dtype or a feature."""
MAX_OPTIONS = 64
"""Most options of one pass."""
MAX_LIST_ITEMS = 16_384
"""Most items of the lists in one request, of each kind: options, guards, constants."""


MAX_SPELLING = 2**18
"""Longest spelling of the passes of a request, in characters; reports and records hold it."""

FORMAT_BOUNDS = {
    "max_nesting": MAX_DEPTH,
    "max_expression_nodes": MAX_EXPRESSION_TREE,
    "max_name_bytes": MAX_NAME_BYTES,
    "max_options": MAX_OPTIONS,
    "max_list_items": MAX_LIST_ITEMS,
    "max_spelling": MAX_SPELLING,
}
"""Those that no setting changes, by the names that GetServerInfo tells."""


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of requests and jobs; see the settings of the same names."""

    max_message_bytes: int
    max_held_bytes: int
    max_held_bytes_per_tenant: int
    max_graph_bytes: int
    max_presentation_bytes: int
    max_blob_bytes: int
    max_nodes: int
    max_passes: int
    max_option_bytes: int
    max_values: int
    max_digests: int
    max_rewrites: int
    max_matches: int
    max_match_steps: int
    max_folded_bytes: int
    max_pass_seconds: float
    job_timeout: float
    max_queue: int
    max_batch_in_flight: int
    max_streams: int
    max_metadata_bytes: int
    max_staged_bytes: int
    max_staged_bytes_in_all: int
    max_call_seconds: float
    max_refused_rate: int
    min_upload_rate: int
    upload_idle_timeout: float
    stream_idle_timeout: float
    job_cpu_seconds: float
    worker_memory_bytes: int
    graph: GraphBounds

    def describe(self) -> Iterator[pb.Limit]:
        """The bounds, for GetServerInfo."""
        units = {
            "bytes": "bytes", "timeout": "seconds", "nodes": "nodes", "seconds": "seconds",
            "rate": "bytes/s",
        }  # fmt: skip
        bounds = [(name, getattr(self, name)) for name in self.__dataclass_fields__]
        bounds += [(name, getattr(self.graph, name)) for name in self.graph.__dataclass_fields__]
        bounds += FORMAT_BOUNDS.items()
        for name, value in bounds:
            if not isinstance(value, GraphBounds):
                unit = units.get(name.split("_")[-1], "count")
                unit = "bytes" if "_bytes_" in name else unit
                yield pb.Limit(name=name, value=int(value), unit=unit)

    def job(self) -> worker.JobLimits:
        """The bounds that a job holds itself to."""
        return worker.JobLimits(
            max_nodes=self.max_nodes,
            max_folded_bytes=self.max_folded_bytes,
            max_matches=self.max_matches,
            max_match_steps=self.max_match_steps,
            pass_seconds=self.max_pass_seconds,
            graph=self.graph.message(),
        )

    def check_compile(self, request: pb.CompileRequest, body: memoryview) -> None:
        """Refuse a compile request whose shape is wrong or too large.

        Args:
            request: The request; the body of its graph may have been left out.
            body: The body of its graph.

        Raises:
            InvalidRequestError: Names the field and the bound.
        """
        check_digest("graph_digest", request.graph_digest)
        if request.HasField("graph"):
            self.check_graph("graph", request.graph)
            self.check_body("graph.body", body)
        passes = len(request.passes) + sum(len(spec.passes) for spec in request.passes)
        if passes > self.max_passes:
            raise InvalidRequestError.of_field(
                "passes", f"has {passes} entries; at most {self.max_passes} are allowed"
            )
        rewrites = 0
        for where, spec in placed_specs(request.passes):
            for j, rewrite in enumerate(spec.rewrites):
                self.check_graph(f"{where}.rewrites[{j}].pattern", rewrite.pattern)
                self.check_graph(f"{where}.rewrites[{j}].replacement", rewrite.replacement)
                self._check_constants(f"{where}.rewrites[{j}].constants", rewrite.constants)
            rewrites += len(spec.rewrites)
        if rewrites > self.max_rewrites:
            raise InvalidRequestError.of_field(
                "passes", f"hold {rewrites} rewrites; at most {self.max_rewrites} are allowed"
            )
        for i, binding in enumerate(request.values):
            check_digest(f"values[{i}].content", binding.content)

    def _check_constants(self, field: str, constants: Sequence[bytes]) -> None:
        size = sum(map(len, constants))
        if size > self.max_graph_bytes:
            raise InvalidRequestError.of_field(
                field,
                f"have {size} bytes; at most {self.max_graph_bytes} are allowed "
                "(setting max_graph_bytes)",
            )

    def check_graph(self, field: str, graph: graph_pb2.Graph) -> None:
        """Refuse a graph message whose envelope is wrong or too large."""
        try:
            check_envelope(graph)
        except DecodeError as error:
            raise InvalidRequestError.of_field(joined(field, error.field), error.reason) from None
        self.check_body(f"{field}.body", graph.body)

    def check_body(self, field: str, body: bytes | memoryview) -> None:
        """Refuse a graph body that is too large, however it came in.

        Raises:
            InvalidRequestError: Names the field and the bound.
        """
        if len(body) > self.max_graph_bytes:
            raise InvalidRequestError.of_field(
                field,
                f"has {len(body)} bytes; at most {self.max_graph_bytes} are allowed "
                "(setting max_graph_bytes)",
            )


def check_digest(field: str, digest: graph_pb2.Digest) -> None:
    """Refuse anything but a SHA-256.

    Raises:
        InvalidRequestError: Names the field.
    """
    if len(digest.sha256) != _DIGEST_BYTES:
        raise InvalidRequestError.of_field(
            f"{field}.sha256", f"has {len(digest.sha256)} bytes; a SHA-256 has {_DIGEST_BYTES}"
        )
