"""Bytes -> torch.fx graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import DecodeError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire import names, process_groups
from lazyfx.wire.canonical import check_canonical
from lazyfx.wire.columns import references, split_attributes
from lazyfx.wire.format import DEVICE_TYPE_NAMES
from lazyfx.wire.module_tree import AttributeReader, Bind
from lazyfx.wire.node_factory import NodePlan, create_direct, create_public, supports_direct
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
        node_names = names.read_names(given, count) if given else [f"n{i}" for i in range(count)]
        paths = _paths(given, columns.attributes)
        root = self._attributes.root(number, paths, modules)
        graph = Graph()
        counts = names.greatest_suffixes(given) if given else {}
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
        calls = list(columns.calls)
        templates = {call: self._template(call, calls) for call in dict.fromkeys(calls)}
        shape_of = {call: template.shape for call, template in templates.items()}
        shapes = list(map(shape_of.__getitem__, calls))
        if not shapes or shapes[-1].op != "output":
            raise DecodeError("the last node is not the output", field="calls")
        holes = [shape.holes for shape in shapes]
        reading = {call for call, template in templates.items() if template.reads_attribute}
        readers = [i for i, call in enumerate(calls) if call in reading] if reading else []
        attributes, deltas = split_attributes(list(columns.operands), holes, readers)
        targets = [shape.target for shape in shapes]
        for node, attribute in zip(readers, attributes, strict=True):
            targets[node] = _attribute_path(columns, paths, shapes[node].op, attribute, node)
        own = [(i, templates[calls[i]]) for i, target in enumerate(targets) if target is None]
        _name_targets(targets, own, node_names, placeholder_targets)
        return NodePlan(node_names, shapes, targets, references(deltas, holes), counts)

    def _template(self, call: int, calls: Sequence[int]) -> Template:
        found = self._templates.get(call)
        if found is None:
            node = calls.index(call)
            if call >= len(self._body.calls):
                raise DecodeError(f"index {call} is outside of calls", field="calls", node=node)
            try:
                found = self._templates[call] = self._reader.read(call)
            except DecodeError as error:
                raise DecodeError(str(error), node=node) from error
        return found

    def _describe(self, nodes: Sequence[Node], columns: pb.GraphColumns) -> None:
        values = list(columns.values)
        if not values:
            return
        if len(values) != len(nodes):
            raise DecodeError("not one value for each node", field="values")
        most = len(self._body.values)
        tables = self._tables
        if max(values) > most:
            raise DecodeError("an index outside of values", field="values")
        if not self._keeps_values:
            return
        lazy = [LazyValue(tables, index) for index in range(most)]
        for node, value in zip(nodes, values, strict=True):
            if value:
                node.meta[META_KEY] = lazy[value - 1]


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
    taken: set[str] = set()
    for node, (shape, stars, _) in own:
        if shape.op == "output":
            if node != len(targets) - 1:
                raise DecodeError("the output is not the last node", field="calls", node=node)
            targets[node] = "output"
            continue
        name = placeholder_targets.get(node, node_names[node])
        if name in taken:
            raise DecodeError(f"two arguments are called {name!r}", node=node)
        taken.add(name)
        targets[node] = stars + name


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
