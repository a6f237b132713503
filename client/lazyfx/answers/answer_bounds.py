"""How much a client takes from a server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerBounds:
    """Bounds on what one answer of a server may be; what is over one raises `ProtocolError`.

    Attributes:
        max_growth: Nodes that a graph may come back with, for each node that was sent. Calls,
            operands, strings and source are bounded in proportion.
        extra_nodes: Nodes beyond that: decompositions of a small graph may be large.
        max_nodes: Nodes, whatever was sent.
        max_graph_bytes: Bytes of graph data.
        max_constant_bytes: Bytes of all constants that passes made of one graph.
        max_text_bytes: Bytes of code, of generated source, and of a picture.
        max_artifact_bytes: Bytes of any other artifact.
        max_value_bytes: Bytes of tensors that a server may ask for.
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
        """Nodes that the answer to a graph of `sent` nodes may have."""
        return min(self.max_nodes, self.max_growth * sent + self.extra_nodes)


DEFAULT_BOUNDS = AnswerBounds()
