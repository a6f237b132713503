"""Decodes the rewrites of a request, and caches small ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, MutableMapping
from typing import TypeAlias

import torch
from cachetools import LRUCache
from torch.fx import GraphModule

from lazyfx.errors import DecodeError, joined
from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.lazy import RecompileLedger, lazy_class
from lazyfx_server.passes.base import InputGuard, Pass, Rewrite, Rewrites
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.pass_requests import placed_specs
from lazyfx_server.security.checked_graph import check
from lazyfx_server.settings.limits import DEFAULT_GRAPH_LIMITS, GraphLimits

_Key: TypeAlias = "tuple[bytes, bytes, GraphLimits]"

# Maximum bytes of a cached body: patterns have a few nodes, and most take less than 300 bytes.
_LONGEST_KEPT = 4096
_MOST_KEPT = 1024


class RewriteReader:
    """Decodes rewrites to graphs.

    A library of rewrites is sent with every graph, and decoding it costs more than decoding the
    graph. So decoded graphs are cached by their bytes, for passes that declare that they only read
    them. Graphs with anything besides nodes are not cached.
    """

    def __init__(self) -> None:
        self._kept: MutableMapping[_Key, GraphModule] = LRUCache(_MOST_KEPT)

    def read(
        self,
        specs: Iterable[pb.PassSpec],
        passes: Iterable[Pass],
        limits: GraphLimits = DEFAULT_GRAPH_LIMITS,
    ) -> dict[int, Rewrites]:
        """The rewrites of each pass, by the index of the pass.

        Args:
            specs: The pipeline of the request.
            passes: Its passes by index.
            limits: Bounds on the size of a graph.

        Raises:
            PassError: A pattern or replacement is not an allowed graph; names the field.
        """
        found: dict[int, Rewrites] = {}
        for number, ((path, spec), pass_) in enumerate(
            zip(placed_specs(specs), passes, strict=True)
        ):
            keep = pass_.only_reads_rewrites
            pairs = []
            for i, rewrite in enumerate(spec.rewrites):
                where = f"{path}.rewrites[{i}]"
                pattern = self._graph(f"{where}.pattern", rewrite.pattern, limits, keep)
                replacement = self._graph(f"{where}.replacement", rewrite.replacement, limits, keep)
                if rewrite.constants:
                    replacement = _bound(where, rewrite)
                guards = tuple(
                    InputGuard(
                        guard.input,
                        tuple(guard.dtypes),
                        guard.rank if guard.HasField("rank") else None,
                        tuple(guard.shape),
                    )
                    for guard in rewrite.guards
                )
                pairs.append(Rewrite(pattern, replacement, guards, rewrite.at_most))
            if pairs:
                found[number] = tuple(pairs)
        return found

    def _graph(
        self, field: str, graph: graph_pb2.Graph, limits: GraphLimits, keep: bool
    ) -> GraphModule:
        # In the sender's names: canonical ones would look like nodes of the graph itself.
        names = graph.presentation if graph.HasField("presentation") else None
        if not keep or len(graph.body) > _LONGEST_KEPT:
            return _decode(field, graph.body, names, limits)
        spelled = b"" if names is None else names.SerializeToString(deterministic=True)
        key = (graph.body, spelled, limits)
        known = self._kept.get(key)
        if known is None:
            known = _decode(field, graph.body, names, limits)
            if not _reads_attributes(known):
                self._kept[key] = known
        return known


def _decode(
    field: str, body: bytes, names: graph_pb2.Presentation | None, limits: GraphLimits
) -> GraphModule:
    # Generate no code for a pattern, and count no recompile for the job.
    uncounted = lazy_class(RecompileLedger())
    try:
        return check(body, limits=limits, names=names, module_class=uncounted).module
    except DecodeError as error:
        raise _refused(error, field, names) from error


def _refused(error: DecodeError, field: str, names: graph_pb2.Presentation | None) -> PassError:
    """The error about a rewrite's graph, with the sender's name of the node."""
    node = None
    if error.node is not None:
        try:
            node = wire.node_name((names or _UNNAMED).graphs[error.graph or 0], error.node)
        except IndexError:
            node = f"n{error.node}"
    return PassError(
        error.reason, field=joined(field, error.field or "body"), node=node, graph=None
    )


_UNNAMED = graph_pb2.Presentation()


def _bound(field: str, rewrite: pb.Rewrite) -> GraphModule:
    """A checked replacement, with the tensors that it reads."""
    body = graph_pb2.GraphBody.FromString(rewrite.replacement.body)
    rows = [row for row in body.graphs[0].attributes if row.HasField("tensor")]
    if len(body.graphs) > 1 or len(rows) != len(rewrite.constants):
        raise PassError(
            f"are {len(rewrite.constants)}, the replacement reads {len(rows)} tensors",
            field=f"{field}.constants",
        )
    values = iter(rewrite.constants)

    def bind(graph: int, number: int, row: graph_pb2.Attribute) -> torch.Tensor:  # noqa: ARG001
        data = next(values)
        wanted = row.tensor.content.sha256
        if wanted and hashlib.sha256(data).digest() != wanted:
            raise DecodeError("the bytes of a constant do not match its digest")
        return wire.tensor_from_bytes(body.tensors[row.tensor.tensor], data)

    names = rewrite.replacement.presentation
    try:
        return wire.decode(
            body,
            names if rewrite.replacement.HasField("presentation") else None,
            bind=bind,
            module_class=lazy_class(RecompileLedger()),
        )
    except DecodeError as error:
        raise PassError(error.reason, field=f"{field}.constants") from error


def _reads_attributes(module: GraphModule) -> bool:
    return any(node.op in ("get_attr", "call_module") for node in module.graph.nodes)
