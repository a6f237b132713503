"""Bytes -> torch.fx graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from operator import attrgetter, setitem
from typing import Any, Literal

import numpy as np
import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire import names, process_groups
from lazyfx.wire.canonical import check_canonical
from lazyfx.wire.columns import Column, column, references, split_attributes
from lazyfx.wire.format import DEVICE_TYPE_NAMES
from lazyfx.wire.module_tree import AttributeReader, Bind
from lazyfx.wire.node_factory import (
    CallShape,
    NodePlan,
    create_direct,
    create_public,
    supports_direct,
)
from lazyfx.wire.templates import Template, TemplateReader
from lazyfx.wire.values import META_KEY, LazyValue, ValueTables

Metadata = Literal["lazy", "none"]
ModuleClass = Callable[[torch.nn.Module, Graph, str], GraphModule]


def decode(
    body: bytes | pb.GraphBody,
    presentation: pb.Presentation | None = None,
    *,
    bind: Bind | None = None,
    module_class: ModuleClass = GraphModule,
    on_root: Callable[[Graph], None] | None = None,
    metadata: Metadata = "lazy",
    public: bool = False,
) -> GraphModule:
    """Read a graph.

    Nothing in the message is executed: targets are looked up in the allow-table, modules
    are made from their options on the meta device, values stay descriptions until
    `materialize` is asked for them.

    Args:
        body: Canonical GraphBody bytes, or what `check_canonical` made of them.
        presentation: Names and device indices. Without it node i is called "n<i>" and
            attribute i "a<i>".
        bind: Gives the tensor of a tensor attribute from the indices of its graph and
            itself; None from it means a tensor on the meta device that stands in.
        module_class: Makes each GraphModule from its root, graph and class name.
        on_root: Called with the root graph before its module is made.
        metadata: "lazy" keeps value descriptions with the nodes, "none" drops them.
        public: Create nodes through torch's public API only.

    Raises:
        DecodeError: The message is not a graph in canonical form, or the names do not fit
            it; names the field and the node.
    """
    if not isinstance(body, pb.GraphBody):
        body = check_canonical(body)
    return _Decoder(body, presentation, bind, module_class, on_root, metadata, public).module()


class _Decoder:
    """Decodes one message."""

    def __init__(
        self,
        body: pb.GraphBody,
        presentation: pb.Presentation | None,
        bind: Bind | None,
        module_class: ModuleClass,
        on_root: Callable[[Graph], None] | None,
        metadata: Metadata,
        public: bool,
    ) -> None:
        self._body = body
        self._names = presentation
        self._module_class = module_class
        self._on_root = on_root
        self._keeps_values = metadata == "lazy"
        self._direct = not public and supports_direct()
        devices = read_devices(body, presentation)
        groups = list(presentation.process_groups) if presentation is not None else None
        self._tables = ValueTables(
            body, devices, process_groups.read_names(body.process_groups, groups)
        )
        self._reader = TemplateReader(self._tables)
        self._templates: dict[int, Template] = {}
        self._attributes = AttributeReader(body, self._tables, self._reader, bind)
        if not body.graphs:
            raise DecodeError("there is no graph", field="graphs")
        if presentation is not None and len(presentation.graphs) != len(body.graphs):
            raise DecodeError("not one entry for each graph", field="presentation.graphs")

    def module(self) -> GraphModule:
        modules: dict[int, GraphModule] = {}
        # Children have greater numbers than the graphs that name them.
        for number in reversed(range(len(self._body.graphs))):
            modules[number] = self._one(number, modules)
        return modules[0]

    def _one(self, number: int, modules: dict[int, GraphModule]) -> GraphModule:
        columns = self._body.graphs[number]
        given = self._names.graphs[number] if self._names is not None else None
        count = len(columns.calls)
        node_names, counts = _node_names(given, count)
        paths = _paths(given, columns.attributes)
        root = self._attributes.root(number, paths, modules)
        graph = Graph()
        arguments = _placeholder_targets(given, count)
        plan = self._plan(columns, paths, node_names, arguments, counts)
        nodes = (create_direct if self._direct else create_public)(graph, plan)
        self._describe(nodes, columns)
        if number == 0 and self._on_root is not None:
            self._on_root(graph)
        module = self._module_class(root, graph, "GraphModule")
        self._attributes.keep_constants(module, number, paths)
        return module

    def _plan(
        self,
        columns: pb.GraphColumns,
        paths: Sequence[str],
        node_names: Sequence[str],
        placeholder_targets: dict[int, str],
        counts: dict[str, int],
    ) -> NodePlan:
        used = column(columns.calls)
        calls: list[int] = used.tolist()
        templates = self._read_templates(calls)
        shapes = {call: template.shape for call, template in templates.items()}
        if not calls or shapes[calls[-1]].op != "output":
            raise DecodeError("the last node is not the output", field="calls")
        holes = _by_call(shapes, lambda call: shapes[call].holes)[used]
        reading = _by_call(shapes, lambda call: templates[call].reads_attribute)
        readers = np.flatnonzero(reading[used])
        attributes, deltas = split_attributes(column(columns.operands), holes, readers)
        target_of = {call: shape.target for call, shape in shapes.items()}
        targets = list(map(target_of.__getitem__, calls))
        for node, attribute in zip(readers.tolist(), attributes.tolist(), strict=True):
            targets[node] = _attribute_path(columns, paths, shapes[calls[node]].op, attribute, node)
        named = _by_call(shapes, lambda call: target_of[call] is None) > reading
        own = [(node, templates[calls[node]]) for node in np.flatnonzero(named[used]).tolist()]
        _name_targets(targets, own, node_names, placeholder_targets)
        operands = references(deltas, holes).tolist()
        return NodePlan(node_names, calls, shapes, targets, operands, counts)

    def _read_templates(self, calls: Sequence[int]) -> dict[int, Template]:
        """The templates of one graph by number of the call."""
        found = {}
        for call in dict.fromkeys(calls):
            if call not in self._templates:
                if call >= len(self._body.calls):
                    raise DecodeError(
                        f"index {call} is outside of calls", field="calls", node=calls.index(call)
                    )
                try:
                    self._templates[call] = self._reader.read(call)
                except DecodeError as error:
                    raise DecodeError(str(error), node=calls.index(call)) from error
            found[call] = self._templates[call]
        return found

    def _describe(self, nodes: Sequence[Node], columns: pb.GraphColumns) -> None:
        values = column(columns.values)
        if not len(values):
            return
        if len(values) != len(nodes):
            raise DecodeError("not one value for each node", field="values")
        most = len(self._body.values)
        if values.max() > most:
            raise DecodeError("an index outside of values", field="values")
        if not self._keeps_values:
            return
        # Nothing stands for number 0, and has no place to be kept in.
        lazy = [None, *map(LazyValue, repeat(self._tables), range(most))]
        numbers: list[int] = values.tolist()
        described = compress(nodes, numbers)
        metas = map(attrgetter("meta"), described)
        rows = map(lazy.__getitem__, filter(None, numbers))
        deque(map(setitem, metas, repeat(META_KEY), rows), maxlen=0)


def _by_call(shapes: Mapping[int, CallShape], fact: Callable[[int], int]) -> Column:
    """A fact about each call, at its number."""
    facts = np.zeros(1 + max(shapes), np.int64)
    facts[list(shapes)] = list(map(fact, shapes))
    return facts


def _node_names(given: pb.GraphNames | None, count: int) -> tuple[list[str], dict[str, int]]:
    """The names of all nodes, and the greatest number behind each stem."""
    if given is None:
        return [f"n{i}" for i in range(count)], {}
    return names.count_names(given, count)


def _attribute_path(
    columns: pb.GraphColumns, paths: Sequence[str], op: str, attribute: int, node: int
) -> str:
    """The target of a node that reads or calls attribute number `attribute`."""
    if attribute >= len(paths):
        raise DecodeError("an attribute that is not there", field="operands", node=node)
    kind = columns.attributes[attribute].WhichOneof("kind")
    if op == "call_module" and kind not in ("module", "graph"):
        raise DecodeError("a call of what is no module", field="attributes", node=node)
    return paths[attribute]


def _name_targets(
    targets: list[Any],
    own: Sequence[tuple[int, Template]],
    node_names: Sequence[str],
    placeholder_targets: dict[int, str],
) -> None:
    """Fill in the targets that neither a call nor an attribute tells."""
    for node, (shape, stars, _) in own:
        if shape.op == "output":
            if node != len(targets) - 1:
                raise DecodeError("the output is not the last node", field="calls", node=node)
            targets[node] = "output"
        else:
            targets[node] = stars + placeholder_targets.get(node, node_names[node])
    if placeholder_targets:
        _check_distinct(targets, own)


def _check_distinct(targets: Sequence[str], own: Sequence[tuple[int, Template]]) -> None:
    """Refuse two arguments of one name; names of nodes are distinct already."""
    taken: set[str] = set()
    for node, (_, stars, _) in own:
        name = targets[node].removeprefix(stars)
        if name in taken:
            raise DecodeError(f"two arguments are called {name!r}", node=node)
        taken.add(name)


def read_devices(body: pb.GraphBody, presentation: pb.Presentation | None) -> list[torch.device]:
    """The devices of a message, with the presentation's indices or with their slots."""
    indices: Sequence[int] | None = presentation.device_indices if presentation else None
    if indices is not None and len(indices) != len(body.devices):
        raise DecodeError("not one for each device", field="presentation.device_indices")
    devices = []
    for number, row in enumerate(body.devices):
        name = DEVICE_TYPE_NAMES.get(row.type)
        if name is None or row.slot > _MOST_DEVICES:
            raise DecodeError("an unknown device", field=f"devices[{number}]")
        index = None if not row.slot else row.slot - 1
        if row.slot and indices is not None:
            index = indices[number]
            if index > _MOST_DEVICES:
                raise DecodeError(
                    f"there is no device {index}", field="presentation.device_indices"
                )
        devices.append(torch.device(name) if index is None else torch.device(name, index))
    if len(set(devices)) != len(devices):
        raise DecodeError("two devices are one", field="presentation.device_indices")
    return devices


# torch keeps a device's index in one signed byte.
_MOST_DEVICES = 127


def _paths(given: pb.GraphNames | None, attributes: Sequence[pb.Attribute]) -> list[str]:
    canonical = names.canonical_paths(attributes)
    if given is None:
        return canonical
    paths = list(given.attribute_paths)
    if len(paths) != len(canonical):
        raise DecodeError("not one for each attribute", field="presentation.attribute_paths")
    for path in paths:
        if not names.is_path(path):
            raise DecodeError(
                f"{path[:100]!r} is not an attribute path", field="presentation.attribute_paths"
            )
    return paths


def _placeholder_targets(given: pb.GraphNames | None, count: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for row in given.placeholder_targets if given else ():
        names.check_identifier(row.target, "presentation.placeholder_targets")
        if row.node >= count:
            raise DecodeError("names no node", field="presentation.placeholder_targets")
        found[row.node] = row.target
    return found
