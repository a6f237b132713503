"""Bytes -> torch.fx graph."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import compress, repeat
from operator import attrgetter, setitem
from typing import Any, Literal

import torch
from torch.fx import Graph, GraphModule, Node

from lazyfx.errors import DecodeError
from lazyfx.shared.wire import names, process_groups
from lazyfx.shared.wire.canonical.body import CanonicalBody, read_canonical
from lazyfx.shared.wire.canonical.call_references import named_calls
from lazyfx.shared.wire.columns import GraphReading, column, read_operands, split_rows
from lazyfx.shared.wire.format import DEVICE_TYPE_NAMES
from lazyfx.shared.wire.node_factory import (
    NodePlan,
    create_direct,
    create_public,
    supports_direct,
)
from lazyfx.shared.wire.reading.module_tree import AttributeReader, Bind
from lazyfx.shared.wire.reading.templates import Template, TemplateReader
from lazyfx.shared.wire.values.descriptions import META_KEY, LazyValue, ValueTables
from lazyfx.v1 import graph_pb2 as pb

Metadata = Literal["lazy", "none"]
ModuleClass = Callable[[torch.nn.Module, Graph, str], GraphModule]


def decode(
    body: bytes | CanonicalBody | pb.GraphBody,
    presentation: pb.Presentation | None = None,
    *,
    bind: Bind | None = None,
    module_class: ModuleClass = GraphModule,
    on_root: Callable[[Graph], None] | None = None,
    metadata: Metadata = "lazy",
) -> GraphModule:
    """Read a graph.

    Nothing in the message is executed: targets are looked up in the table of allowed callables,
    modules are built from their options on the meta device, and values stay descriptions until
    `materialize` is called.

    Args:
        body: Canonical GraphBody bytes, or the result of `read_canonical`; or a message that the
            caller has checked.
        presentation: Names and device indices. Without it, node i is called "n<i>" and attribute i
            "a<i>".
        bind: Returns the tensor of a tensor attribute, given the indices of its graph and of the
            attribute; None stands for a placeholder tensor on the meta device.
        module_class: Creates each GraphModule from its root, graph and class name.
        on_root: Called with the root graph before its module is created.
        metadata: "lazy" keeps value descriptions with the nodes, "none" drops them.

    Raises:
        DecodeError: The message is not a graph in canonical form, or the names do not fit the
            graph; names the field and the node.
    """
    if isinstance(body, bytes):
        body = read_canonical(body)
    elif isinstance(body, pb.GraphBody):
        rows = split_rows(body.SerializeToString(deterministic=True))
        body = CanonicalBody(body, named_calls(rows), ())
    return _Decoder(body, presentation, bind, module_class, on_root, metadata).module()


class _Decoder:
    """Decodes one message."""

    def __init__(
        self,
        read: CanonicalBody,
        presentation: pb.Presentation | None,
        bind: Bind | None,
        module_class: ModuleClass,
        on_root: Callable[[Graph], None] | None,
        metadata: Metadata,
    ) -> None:
        body = self._body = read.message
        self._readings = read.graphs
        self._names = presentation
        self._module_class = module_class
        self._on_root = on_root
        self._keeps_values = metadata == "lazy"
        self._direct = supports_direct()
        devices = read_devices(body, presentation)
        groups = list(presentation.process_groups) if presentation is not None else None
        self._tables = ValueTables(
            body, devices, process_groups.read_names(body.process_groups, groups)
        )
        self._reader = TemplateReader(self._tables, read.calls)
        self._templates: dict[int, Template] = {}
        self._attributes = AttributeReader(body, self._tables, self._reader, bind)
        if not body.graphs:
            raise DecodeError("the body has no graph", field="graphs")
        if presentation is not None and len(presentation.graphs) != len(body.graphs):
            raise DecodeError("must have one entry per graph", field="presentation.graphs")

    def module(self) -> GraphModule:
        modules: dict[int, GraphModule] = {}
        # Children have greater numbers than the graphs that refer to them.
        for number in reversed(range(len(self._body.graphs))):
            try:
                modules[number] = self._one(number, modules)
            except DecodeError as error:
                raise error.within(graph=number) from error.__cause__
        return modules[0]

    def _one(self, number: int, modules: dict[int, GraphModule]) -> GraphModule:
        columns = self._body.graphs[number]
        given = self._names.graphs[number] if self._names is not None else None
        paths = _paths(given, columns.attributes)
        plan, reading = self._plan(number, given, paths)
        uses = zip(reading.readers.tolist(), reading.attributes.tolist(), strict=True)
        root = self._attributes.root(number, paths, modules, uses)
        graph = Graph()
        nodes = (create_direct if self._direct else create_public)(graph, plan)
        self._describe(nodes, columns)
        if number == 0 and self._on_root is not None:
            self._on_root(graph)
        module = self._module_class(root, graph, "GraphModule")
        self._attributes.keep_constants(module, number, paths)
        return module

    def _plan(
        self, number: int, given: pb.GraphNames | None, paths: Sequence[str]
    ) -> tuple[NodePlan, GraphReading]:
        columns = self._body.graphs[number]
        reading = self._readings[number] if self._readings else None
        node_names, counts = _node_names(given, len(columns.calls))
        arguments = _placeholder_targets(given, len(columns.calls))
        calls = reading.calls if reading is not None else list(columns.calls)
        templates = self._read_templates(calls)
        shapes = {call: template.shape for call, template in templates.items()}
        outputs = [calls.index(call) for call, shape in shapes.items() if shape.op == "output"]
        if outputs != [len(calls) - 1]:
            node = min(outputs, default=None)
            raise DecodeError("the last node is not the output", field="calls", node=node)
        if reading is None:
            reading = _read_operands(columns, calls, templates)
        target_of = {call: shape.target for call, shape in shapes.items()}
        targets = list(map(target_of.__getitem__, calls))
        targets[-1] = "output"
        uses = zip(reading.readers.tolist(), reading.attributes.tolist(), strict=True)
        for node, attribute in uses:
            targets[node] = _attribute_path(columns, paths, shapes[calls[node]].op, attribute, node)
        stars = {call: t.stars for call, t in templates.items() if t.shape.op == "placeholder"}
        own = compress(range(len(calls)), map(stars.__contains__, calls))
        if arguments or any(stars.values()):
            _name_targets(targets, [(i, stars[calls[i]]) for i in own], node_names, arguments)
        else:
            for node in own:
                targets[node] = node_names[node]
        plan = NodePlan(node_names, calls, shapes, targets, reading.operands.tolist(), counts)
        return plan, reading

    def _read_templates(self, calls: Sequence[int]) -> dict[int, Template]:
        """The templates of one graph, by the index of the call."""
        found = {}
        for call in dict.fromkeys(calls):
            if call not in self._templates:
                if call >= len(self._body.calls):
                    raise DecodeError(
                        f"index {call} is out of range of calls",
                        field="calls",
                        node=calls.index(call),
                    )
                try:
                    self._templates[call] = self._reader.read(call)
                except DecodeError as error:
                    raise error.within(node=calls.index(call)) from None
            found[call] = self._templates[call]
        return found

    def _describe(self, nodes: Sequence[Node], columns: pb.GraphColumns) -> None:
        values = column(columns.values)
        if not len(values):
            return
        if len(values) != len(nodes):
            raise DecodeError("must have one value per node", field="values")
        most = len(self._body.values)
        if values.max() > most:
            raise DecodeError("an index out of range of values", field="values")
        if not self._keeps_values:
            return
        # Number 0 means no value, which is not stored.
        lazy = [None, *map(LazyValue, repeat(self._tables), range(most))]
        numbers: list[int] = values.tolist()
        described = compress(nodes, numbers)
        metas = map(attrgetter("meta"), described)
        rows = map(lazy.__getitem__, filter(None, numbers))
        deque(map(setitem, metas, repeat(META_KEY), rows), maxlen=0)


def _read_operands(
    columns: pb.GraphColumns, calls: list[int], templates: Mapping[int, Template]
) -> GraphReading:
    """The columns of a graph, if `read_canonical` has not already read them."""
    holes = [templates[call].shape.holes for call in calls]
    readers = [node for node, call in enumerate(calls) if templates[call].reads_attribute]
    return read_operands(calls, column(columns.operands), column(holes), column(readers))


def _node_names(given: pb.GraphNames | None, count: int) -> tuple[list[str], dict[str, int]]:
    """The names of all nodes, and the greatest suffix of each stem."""
    if given is None:
        return [f"n{i}" for i in range(count)], {}
    return names.count_names(given, count)


def _attribute_path(
    columns: pb.GraphColumns, paths: Sequence[str], op: str, attribute: int, node: int
) -> str:
    """The target of a node that reads or calls attribute number `attribute`."""
    if attribute >= len(paths):
        raise DecodeError("no such attribute", field="operands", node=node)
    kind = columns.attributes[attribute].WhichOneof("kind")
    if op == "call_module" and kind not in ("module", "graph"):
        raise DecodeError("calls something that is not a module", field="attributes", node=node)
    return paths[attribute]


def _name_targets(
    targets: list[Any],
    own: Sequence[tuple[int, str]],
    node_names: Sequence[str],
    arguments: dict[int, str],
) -> None:
    """Fill in the targets of placeholders.

    Args:
        targets: One per node.
        own: Index of each placeholder, and the stars before its name.
        node_names: One per node.
        arguments: Names of placeholders that differ from their nodes' names.
    """
    for node, stars in own:
        targets[node] = stars + arguments.get(node, node_names[node])
    # Node names are already known to be distinct.
    if arguments:
        _check_distinct(targets, own)


def _check_distinct(targets: Sequence[str], own: Sequence[tuple[int, str]]) -> None:
    """Refuse duplicate argument names."""
    taken: set[str] = set()
    for node, stars in own:
        name = targets[node].removeprefix(stars)
        if name in taken:
            raise DecodeError(f"two arguments have the name {name!r}", node=node)
        taken.add(name)


def read_devices(body: pb.GraphBody, presentation: pb.Presentation | None) -> list[torch.device]:
    """The devices of a message, with the indices of the presentation or with slot numbers."""
    indices: Sequence[int] | None = presentation.device_indices if presentation else None
    if indices is not None and len(indices) != len(body.devices):
        raise DecodeError("must have one entry per device", field="presentation.device_indices")
    devices = []
    for number, row in enumerate(body.devices):
        name = DEVICE_TYPE_NAMES.get(row.type)
        if name is None or row.slot > _MAX_DEVICES:
            raise DecodeError("an unknown device", field=f"devices[{number}]")
        index = None if not row.slot else row.slot - 1
        if row.slot and indices is not None:
            index = indices[number]
            if index > _MAX_DEVICES:
                raise DecodeError(
                    f"there is no device {index}", field="presentation.device_indices"
                )
        devices.append(torch.device(name) if index is None else torch.device(name, index))
    if len(set(devices)) != len(devices):
        raise DecodeError("two devices are the same", field="presentation.device_indices")
    return devices


# torch keeps a device's index in one signed byte.
_MAX_DEVICES = 127


def _paths(given: pb.GraphNames | None, attributes: Sequence[pb.Attribute]) -> list[str]:
    canonical = names.canonical_paths(attributes)
    if given is None:
        return canonical
    paths = list(given.attribute_paths)
    if len(paths) != len(canonical):
        raise DecodeError("must have one entry per attribute", field="presentation.attribute_paths")
    for path in paths:
        if not names.is_path(path):
            raise DecodeError(
                f"{path[:100]!r} is not an attribute path", field="presentation.attribute_paths"
            )
    return paths


def _placeholder_targets(given: pb.GraphNames | None, count: int) -> dict[int, str]:
    found: dict[int, str] = {}
    for row in given.placeholder_targets if given else ():
        field = "presentation.placeholder_targets"
        if row.node >= count:
            raise DecodeError("refers to no node", field=field)
        names.check_identifier(row.target, field, row.node)
        found[row.node] = row.target
    return found
