"""Explains why two graphs have different digests, or that they have the same."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch.export import ExportedProgram
from torch.fx import GraphModule

from lazyfx.capture.capturing import GraphCapturer
from lazyfx.capture.saved_graphs import SavedGraph, load_graph
from lazyfx.explaining.comparing import ComparedGraph, Difference, compare
from lazyfx.explaining.difference_picture import draw
from lazyfx.explaining.difference_text import write
from lazyfx.explaining.rows import Rows
from lazyfx.shared import wire
from lazyfx.shared.picture import Picture
from lazyfx.v1 import graph_pb2 as pb

Explainable: TypeAlias = (
    "GraphModule | ExportedProgram | wire.EncodedGraph | SavedGraph | str | Path"
)

__all__ = ["Difference", "Explainable", "Explanation", "explain"]


@dataclass(frozen=True)
class Explanation:
    """How two graphs differ, node by node and field by field.

    Attributes:
        digests: Hex digests of the two graphs.
        differences: All differences, in the order of the nodes; empty if and only if the
            digests are equal.
        renamed: If the digests are equal: pairs of different names of the same node, which do not
            matter.
        nodes: Nodes of the two graphs, nested ones included.
    """

    digests: tuple[str, str]
    differences: tuple[Difference, ...]
    renamed: tuple[tuple[str, str], ...]
    nodes: tuple[int, int]
    _graphs: tuple[ComparedGraph, ...]

    @property
    def same(self) -> bool:
        """Whether the digests are equal: one compile serves both graphs."""
        return self.digests[0] == self.digests[1]

    def __str__(self) -> str:
        return self.text()

    def text(self, most: int = 20) -> str:
        """The differences as text.

        Args:
            most: Maximum groups of similar differences to write out.
        """
        return write(self.digests, self.nodes, self.differences, self.renamed, most)

    def picture(self) -> Picture:
        """A drawing of the two graphs side by side: what differs, and the nodes around it."""
        first, second = (digest[:12] for digest in self.digests)
        note = "equal digests" if self.same else f"{len(self.differences)} differences"
        return draw(self._graphs, (f"first {first}", f"second {second}"), note)


def explain(first: Explainable, second: Explainable) -> Explanation:
    """Say why two graphs have different digests, or that they have the same.

    Nodes are shown by their own names. A node whose operands changed, but not its own fields, is
    not a difference.

    Args:
        first: A GraphModule, an ExportedProgram, an EncodedGraph, a SavedGraph, or the path of
            a file that `save_graph` wrote.
        second: The second graph, in any of these forms.

    Raises:
        UnsupportedGraphError: A module cannot be encoded; names the node.
        DecodeError: A file is not a graph that this version of lazyfx reads.
        LazyfxError: It is something else.
    """
    (ours, our_digest), (theirs, their_digest) = _read(first), _read(second)
    graphs = compare(ours, theirs)
    differences = tuple(d for graph in graphs for pair in graph.differences for d in pair)
    same = our_digest == their_digest
    if not same and not differences:
        # The digest depends on something that has no row.
        differences = (Difference("changed", None, None, "body", our_digest, their_digest),)
    return Explanation(
        digests=(our_digest, their_digest),
        differences=() if same else differences,
        renamed=tuple(_renamed(graphs)) if same else (),
        nodes=(sum(map(len, ours.graphs)), sum(map(len, theirs.graphs))),
        _graphs=tuple(graphs),
    )


def _renamed(graphs: list[ComparedGraph]) -> Iterator[tuple[str, str]]:
    for graph in graphs:
        prefix = f"{graph.path}." if graph.path else ""
        for i, j in graph.pairs:
            if i is not None and j is not None and graph.first[i].name != graph.second[j].name:
                yield prefix + graph.first[i].name, prefix + graph.second[j].name


def _read(what: Explainable) -> tuple[Rows, str]:
    if isinstance(what, (str, Path)):
        what = load_graph(what)
    if isinstance(what, (wire.EncodedGraph, SavedGraph)):
        body, names = what.body, what.presentation
    else:
        encoded = wire.encode(GraphCapturer().capture(what).module)
        body, names = encoded.body, encoded.presentation
    return Rows(pb.GraphBody.FromString(body), names), hashlib.sha256(body).hexdigest()
