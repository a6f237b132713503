"""Checks requests against their bounds before any work is done."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from lazyfx.errors import DecodeError, joined
from lazyfx.shared.format_version import check_envelope
from lazyfx.shared.wire.format import MAX_DEPTH, MAX_EXPRESSION_TREE
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.compiling.limits.urgency import rank_of
from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.passes.pass_requests import placed_specs
from lazyfx_server.settings.limits import GraphLimits, RequestLimits
from lazyfx_server.settings.part import Bound

_DIGEST_BYTES = 32

# Bounds of the format, for which a setting would serve no purpose.
MAX_NAME_BYTES = 256
"""Maximum length of the name of a pass, an option, a dtype or a feature."""
MAX_OPTIONS = 64
"""Maximum options of one pass."""
MAX_LIST_ITEMS = 16_384
"""Maximum items in the lists of one request, per kind: options, guards, constants."""


MAX_SPELLING = 2**18
"""Maximum characters of the spelling of a request's passes, which reports and records contain."""

FORMAT_BOUNDS = {
    "max_nesting": MAX_DEPTH,
    "max_expression_nodes": MAX_EXPRESSION_TREE,
    "max_name_bytes": MAX_NAME_BYTES,
    "max_options": MAX_OPTIONS,
    "max_list_items": MAX_LIST_ITEMS,
    "max_spelling": MAX_SPELLING,
}
"""Bounds without a setting, by their names in GetServerInfo."""


def described(limits: Iterable[tuple[str, float]]) -> Iterator[pb.Limit]:
    """All bounds by name, including those of the format, for GetServerInfo."""
    units = {
        "bytes": "bytes", "timeout": "seconds", "nodes": "nodes", "seconds": "seconds",
        "rate": "bytes/s",
    }  # fmt: skip
    for name, value in (*limits, *FORMAT_BOUNDS.items()):
        unit = units.get(name.split("_")[-1], "count")
        unit = "bytes" if "_bytes_" in name else unit
        yield pb.Limit(name=name, value=int(value), unit=unit)


def check_compile(request: pb.CompileRequest, body: memoryview, limits: RequestLimits) -> None:
    """Refuse a compile request that is malformed or too large.

    Args:
        request: The request, possibly without the body of its graph.
        body: The body of its graph.
        limits: The bounds.

    Raises:
        InvalidRequestError: Names the field and the bound.
    """
    check_digest("graph_digest", request.graph_digest)
    rank_of(request.priority)
    if request.HasField("graph"):
        _check_graph("graph", request.graph, limits)
        check_body("graph.body", body, limits)
    passes = len(request.passes) + sum(len(spec.passes) for spec in request.passes)
    _check_count("passes", f"has {passes} entries", passes, limits.bound("max_passes"))
    rewrites = 0
    for where, spec in placed_specs(request.passes):
        for j, rewrite in enumerate(spec.rewrites):
            _check_graph(f"{where}.rewrites[{j}].pattern", rewrite.pattern, limits)
            _check_graph(f"{where}.rewrites[{j}].replacement", rewrite.replacement, limits)
            size = sum(map(len, rewrite.constants))
            field = f"{where}.rewrites[{j}].constants"
            _check_count(field, f"have {size} bytes", size, limits.bound("max_graph_bytes"))
        rewrites += len(spec.rewrites)
    _check_count("passes", f"hold {rewrites} rewrites", rewrites, limits.bound("max_rewrites"))
    for i, binding in enumerate(request.values):
        check_digest(f"values[{i}].content", binding.content)


def _check_graph(field: str, graph: graph_pb2.Graph, limits: GraphLimits) -> None:
    """Refuse a graph message whose envelope is invalid or too large."""
    try:
        check_envelope(graph)
    except DecodeError as error:
        raise InvalidRequestError.of_field(joined(field, error.field), error.reason) from None
    check_body(f"{field}.body", graph.body, limits)


def check_body(field: str, body: bytes | memoryview, limits: GraphLimits) -> None:
    """Refuse a graph body that is too large, however it was sent.

    Raises:
        InvalidRequestError: Names the field and the bound.
    """
    _check_count(field, f"has {len(body)} bytes", len(body), limits.bound("max_graph_bytes"))


def _check_count(field: str, what: str, count: int, bound: Bound) -> None:
    if count > bound.most:
        raise InvalidRequestError.of_field(field, f"{what}; {bound.allowed}")


def check_digest(field: str, digest: graph_pb2.Digest) -> None:
    """Refuse a digest that is not a SHA-256.

    Raises:
        InvalidRequestError: Names the field.
    """
    if len(digest.sha256) != _DIGEST_BYTES:
        raise InvalidRequestError.of_field(
            f"{field}.sha256", f"has {len(digest.sha256)} bytes; a SHA-256 has {_DIGEST_BYTES}"
        )
