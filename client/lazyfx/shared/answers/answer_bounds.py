"""Bounds on what a client accepts from a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerBounds:
    """Bounds on one answer of a server; an answer that exceeds one raises `ProtocolError`.

    Attributes:
        max_growth: Nodes that a returned graph may have, per node that was sent. Calls, operands,
            strings and source are bounded in proportion.
        extra_nodes: Additional nodes: decompositions of a small graph may be large.
        max_nodes: Nodes in any case.
        max_graph_bytes: Bytes of graph data.
        max_constant_bytes: Bytes of all constants that passes created for one graph.
        max_text_bytes: Bytes of code, of generated source, and of a picture.
        max_artifact_bytes: Bytes of any other artifact.
        max_value_bytes: Bytes of tensor values that a server may request.
        max_seconds: Seconds that rebuilding one graph may take.
    """

    max_growth: int = 10
    extra_nodes: int = 50_000
    max_nodes: int = 5_000_000
    max_graph_bytes: int = 256 * 2**20
    max_constant_bytes: int = 16 * 2**30
    max_text_bytes: int = 256 * 2**20
    max_artifact_bytes: int = 4 * 2**30
    max_value_bytes: int = 256 * 2**30
    max_seconds: float = 600.0

    def nodes(self, sent: int) -> int:
        """Maximum nodes of the answer to a graph of `sent` nodes."""
        return min(self.max_nodes, self.max_growth * sent + self.extra_nodes)


DEFAULT_BOUNDS = AnswerBounds()
