"""Maps canonical names to a caller's names, and a compiled graph back to its source."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from lazyfx.errors import DecodeError
from lazyfx.shared.wire import names, process_groups
from lazyfx.shared.wire.origins import Origins, tensor_origins
from lazyfx.shared.wire.writing.encode import EncodedGraph
from lazyfx.v1 import graph_pb2 as pb

_CANONICAL_NODE = re.compile(r"n(0|[1-9][0-9]{0,8})\Z", re.ASCII)


def provenance(
    source: bytes | pb.GraphBody, encoded: EncodedGraph, origins: Origins | None = None
) -> list[pb.Provenance]:
    """The provenance of the parts of a graph that was decoded from `source` and changed.

    The graph was decoded with canonical names, so a node called "n<i>" is node i of the
    source, and an attribute at "a<i>" its attribute i.

    Args:
        source: The decoded body.
        encoded: The graph after the passes.
        origins: The origins before the passes. With them, tensors and modules that passes moved to
            another graph are found too, and a new graph that contains parts of a source graph
            counts as derived from it.

    Returns:
        One entry per graph of `encoded`.
    """
    if not isinstance(source, pb.GraphBody):
        source = pb.GraphBody.FromString(source)
    compiled = pb.GraphBody.FromString(encoded.body)
    presentation = encoded.presentation
    rows = [pb.Provenance() for _ in compiled.graphs]
    rows[0].source_graph = 1
    moved: set[int] = set()
    for number, row in enumerate(rows):
        columns, given = compiled.graphs[number], presentation.graphs[number]
        values = encoded.attributes[number]
        if not row.source_graph and origins is not None:
            shared = origins.common_graph(values)
            row.source_graph = 0 if shared is None else 1 + shared
            moved.update([number] if row.source_graph else [])
        if not row.source_graph:
            row.nodes.extend([0] * len(columns.calls))
            row.attributes.extend([0] * len(columns.attributes))
            continue
        origin = source.graphs[row.source_graph - 1]
        row.nodes.extend(_node_origins(given, len(origin.calls)))
        places = {p: i for i, p in enumerate(names.canonical_paths(origin.attributes))}
        # In a graph that a pass created, a path has no meaning.
        paths = given.attribute_paths if number not in moved else ()
        known = {i: places[path] for i, path in enumerate(paths) if path in places}
        row.attributes.extend(tensor_origins(origins, row.source_graph - 1, values, known))
        for attribute, place in zip(columns.attributes, row.attributes, strict=True):
            if place and attribute.WhichOneof("kind") == "graph":
                rows[attribute.graph].source_graph = 1 + origin.attributes[place - 1].graph
    devices = {(d.type, d.slot): i for i, d in enumerate(source.devices)}
    for device, index in zip(compiled.devices, presentation.device_indices, strict=True):
        slot = device.slot and index + 1
        rows[0].devices.append(1 + devices.get((device.type, slot), -1))
    return rows


def _node_origins(given: pb.GraphNames, count: int) -> list[int]:
    origins = []
    seen = set()
    for stem, suffix in zip(given.stem, given.suffix, strict=True):
        found = canonical_node(given.stems[stem]) if not suffix else None
        place = count if found is None else found
        origins.append(1 + place if place < count and place not in seen else 0)
        seen.add(place)
    return origins


def restore_names(compiled: pb.CompiledGraph, source: pb.Presentation | None) -> pb.Presentation:
    """The names of a compiled graph, derived from a caller's names of its source.

    Nodes and attributes that survived get the caller's names; new ones keep their own, made unique.
    Device indices and the calling convention are copied.

    Args:
        compiled: Presentation and provenance from a worker.
        source: The caller's presentation of the source; None keeps canonical names.

    Raises:
        DecodeError: The caller's names do not fit the source graph.
    """
    own = compiled.graph.presentation
    result = pb.Presentation()
    result.CopyFrom(own)
    if source is None or not source.graphs:
        return result
    for number, origin in enumerate(compiled.provenance):
        if origin.source_graph:
            if origin.source_graph > len(source.graphs):
                raise DecodeError("must have one entry per graph", field="presentation.graphs")
            _present_graph(
                own.graphs[number],
                source.graphs[origin.source_graph - 1],
                origin,
                result.graphs[number],
            )
    origins = compiled.provenance[0].devices if compiled.provenance else ()
    for i, device in enumerate(origins):
        if device:
            if device > len(source.device_indices):
                raise DecodeError("too short", field="presentation.device_indices")
            result.device_indices[i] = source.device_indices[device - 1]
    result.process_groups[:] = process_groups.restore_names(
        list(own.process_groups), list(source.process_groups)
    )
    if source.HasField("signature"):
        result.signature.CopyFrom(source.signature)
    return result


def _present_graph(
    own: pb.GraphNames, source: pb.GraphNames, origin: pb.Provenance, result: pb.GraphNames
) -> None:
    result.Clear()
    theirs = names.read_names(source, len(source.stem))
    ours = names.read_names(own, len(own.stem))
    names.write_names(_merge(ours, theirs, origin.nodes, "presentation.stem", _next_name), result)
    paths = _merge(
        own.attribute_paths,
        source.attribute_paths,
        origin.attributes,
        "presentation.attribute_paths",
        lambda path, taken: _next_name(path.replace(".", "_"), taken),
    )
    result.attribute_paths.extend(paths)
    targets = {row.node: row.target for row in source.placeholder_targets}
    own_targets = {row.node: row.target for row in own.placeholder_targets}
    for i, place in enumerate(origin.nodes):
        target = targets.get(place - 1) if place else own_targets.get(i)
        if target is not None:
            result.placeholder_targets.add(node=i, target=target)


def _merge(
    ours: Sequence[str],
    theirs: Sequence[str],
    origins: Sequence[int],
    field: str,
    rename: Callable[[str, set[str]], str],
) -> list[str]:
    if max(origins, default=0) > len(theirs):
        raise DecodeError("shorter than the graph", field=field)
    taken = {theirs[place - 1] for place in origins if place}
    merged = []
    for name, place in zip(ours, origins, strict=True):
        chosen = theirs[place - 1] if place else name
        if not place:
            if chosen in taken:
                chosen = rename(chosen, taken)
            taken.add(chosen)
        merged.append(chosen)
    return merged


def _next_name(name: str, taken: set[str]) -> str:
    stem, suffix = names.split(name)
    suffix = max(suffix, 1)
    while names.join(stem, suffix) in taken:
        suffix += 1
    return names.join(stem, suffix)


def tensor_places(body: pb.GraphBody) -> dict[str, tuple[int, int]]:
    """Graph and attribute index of each tensor, by its canonical path from the root.

    A tensor "a4" of the graph at "a2" is at "a2.a4".
    """
    places: dict[str, tuple[int, int]] = {}
    prefixes = {0: ""}
    for number, graph in enumerate(body.graphs):
        prefix = prefixes.get(number)
        if prefix is None:
            continue
        for i, path in enumerate(names.canonical_paths(graph.attributes)):
            row = graph.attributes[i]
            if row.WhichOneof("kind") == "tensor":
                places[prefix + path] = (number, i)
            elif row.WhichOneof("kind") == "graph":
                prefixes.setdefault(row.graph, f"{prefix}{path}.")
    return places


def canonical_node(name: str) -> int | None:
    """The node with this canonical name: i for "n<i>"; None for other names."""
    match = _CANONICAL_NODE.match(name)
    return int(match[1]) if match else None


def graph_at(body: pb.GraphBody, path: str) -> int | None:
    """The index of the graph at a canonical path ("" is the root); None if there is none."""
    number = 0
    for atom in path.split(".") if path else ():
        attributes = body.graphs[number].attributes
        place = {p: i for i, p in enumerate(names.canonical_paths(attributes))}.get(atom)
        if place is None or attributes[place].WhichOneof("kind") != "graph":
            return None
        number = attributes[place].graph
    return number


def node_name(given: pb.GraphNames, node: int) -> str:
    """The name of one node."""
    return names.join(given.stems[given.stem[node]], given.suffix[node])
