"""Checks the caller's names of nodes, arguments and attributes, which reach generated source."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lazyfx.errors import DecodeError
from lazyfx.shared.wire import process_groups
from lazyfx.shared.wire.names import check_identifier, is_path, read_names
from lazyfx.shared.wire.reading.decode import read_devices
from lazyfx.v1 import graph_pb2

# Modules refuse to register anything under the name of an attribute of nn.Module.
_OF_EVERY_MODULE = frozenset(dir(nn.Module()))


def check_names(body: graph_pb2.GraphBody, presentation: graph_pb2.Presentation) -> None:
    """Check that names fit a graph and are valid in Python source.

    Time and memory are linear in the size of the presentation.

    Raises:
        DecodeError: Names the field, "presentation...".
    """
    if len(presentation.graphs) != len(body.graphs):
        raise DecodeError("must have one entry per graph", field="presentation.graphs")
    if len(presentation.device_indices) != len(body.devices):
        raise DecodeError("must have one entry per device", field="presentation.device_indices")
    read_devices(body, presentation)
    process_groups.read_names(body.process_groups, list(presentation.process_groups))
    for number, (columns, given) in enumerate(zip(body.graphs, presentation.graphs, strict=True)):
        try:
            nodes = read_names(given, len(columns.calls))
            _check_arguments(body, columns, given, nodes)
        except DecodeError as error:
            raise error.within(graph=number) from None
        _check_paths(columns.attributes, given.attribute_paths, f"graph {number}")
    for name in presentation.signature.argument_names:
        check_identifier(name, "presentation.signature.argument_names")


def _check_arguments(
    body: graph_pb2.GraphBody,
    columns: graph_pb2.GraphColumns,
    given: graph_pb2.GraphNames,
    nodes: Sequence[str],
) -> None:
    """Check that placeholder targets are unique argument names."""
    field = "presentation.placeholder_targets"
    targets: dict[int, str] = {}
    for row in given.placeholder_targets:
        if row.node >= len(nodes):
            raise DecodeError("refers to no node", field=field)
        if row.node in targets:
            raise DecodeError("refers to a node twice", field=field, node=row.node)
        check_identifier(row.target, field, row.node)
        targets[row.node] = row.target
    taken: set[str] = set()
    for i, call in enumerate(columns.calls):
        if body.calls[call].opcode == graph_pb2.OPCODE_PLACEHOLDER:
            name = targets.get(i, nodes[i])
            if name in taken:
                raise DecodeError(f"two arguments have the name {name!r}", field=field, node=i)
            taken.add(name)


def _check_paths(
    attributes: Sequence[graph_pb2.Attribute], paths: Sequence[str], graph: str
) -> None:
    """Check that attribute paths are dotted names that do not conflict."""
    field = "presentation.attribute_paths"
    if len(paths) != len(attributes):
        raise DecodeError(f"must have one entry per attribute of {graph}", field=field)
    found: dict[str, graph_pb2.Attribute] = {}
    for path, attribute in zip(paths, attributes, strict=True):
        if not is_path(path) or not _OF_EVERY_MODULE.isdisjoint(path.split(".")):
            raise DecodeError(f"{path[:100]!r} is not an attribute path", field=field)
        if found.setdefault(path, attribute) != attribute:
            raise DecodeError(f"two attributes have the path {path[:100]!r}", field=field)
    leaves = {p for p, a in found.items() if a.WhichOneof("kind") not in ("graph", "module")}
    for path in paths:
        parent = path.rpartition(".")[0]
        while parent:
            if parent in leaves:
                raise DecodeError(
                    f"the path {path[:100]!r} leads through something that is not a module",
                    field=field,
                )
            parent = parent.rpartition(".")[0]
