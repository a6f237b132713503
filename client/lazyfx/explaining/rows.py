"""A graph message as one row of fields per node: what enters the digest, in readable form.

A field is a leaf with a path, such as `args[1]`, `kwargs[dim]` or `value.dtype`. Numbers that are
only identities (nodes, symbols, memory, device slots) are separate kinds of leaves, so that two
graphs can be compared whatever their numbering.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lazyfx.explaining.expression_text import Expressions
from lazyfx.explaining.leaves import Device, Leaf, enum_word, literal, message_leaf, number
from lazyfx.v1 import graph_pb2 as pb


class Row(NamedTuple):
    """One node: the caller's name, and its fields by path."""

    name: str
    fields: dict[str, Leaf]

    def summary(self) -> str:
        """The node on one line, without its value."""
        parts = []
        for path, leaf in self.fields.items():
            where, _, name = path.rstrip("]").partition("[")
            if where in ("args", "kwargs") and path.count("[") == 1:
                parts.append(leaf.text if where == "args" else f"{name}={leaf.text}")
        target = self.fields.get("target") or self.fields.get("attribute")
        called = f" {target.text}" if target else ""
        return f"{self.fields['op'].text}{called}({', '.join(parts)[:200]})"


Fields = Iterator[tuple[str, Leaf]]


class Rows:
    """The rows of all graphs of one message.

    Args:
        body: The graph.
        presentation: Its names; canonical ones by default.

    Attributes:
        graphs: The rows of each graph.
    """

    def __init__(self, body: pb.GraphBody, presentation: pb.Presentation | None) -> None:
        self._body = body
        self._names = presentation
        self._expressions = Expressions(body)
        self._known_values: dict[int, list[tuple[str, Leaf]]] = {}
        self.graphs = [self._rows(number) for number in range(len(body.graphs))]

    def _rows(self, number: int) -> list[Row]:
        columns = self._body.graphs[number]
        given = self._names.graphs[number] if self._names is not None else None
        names = _node_names(given, len(columns.calls))
        paths = list(given.attribute_paths) if given else []
        operands = iter(columns.operands)
        rows = []
        for place, call_index in enumerate(columns.calls):
            call = self._body.calls[call_index]
            fields = dict(self._call(call, place, names, operands, columns, paths))
            if columns.values:
                fields.update(self._value(columns.values[place]))
            rows.append(Row(names[place], fields))
        return rows

    def _call(
        self,
        call: pb.Call,
        place: int,
        names: list[str],
        operands: Iterator[int],
        columns: pb.GraphColumns,
        paths: list[str],
    ) -> Fields:
        yield "op", literal(pb.Opcode.Name(call.opcode).removeprefix("OPCODE_").lower())
        if call.target:
            target = self._body.targets[call.target - 1]
            yield "target", Leaf("literal", (target.kind, target.name), target.name)
        if call.stars:
            yield "stars", literal("*" * call.stars)
        if call.opcode in (pb.OPCODE_GET_ATTR, pb.OPCODE_CALL_MODULE):
            yield from self._attribute(next(operands), columns, paths)

        def hole() -> Leaf:
            source = place - next(operands)
            return Leaf("node", source, f"%{names[source]}")

        for i, argument in enumerate(call.args):
            yield from self._argument(f"args[{i}]", argument, hole)
        for keyword in call.kwargs:
            name = self._body.strings[keyword.name]
            yield from self._argument(f"kwargs[{name}]", keyword.value, hole)

    def _argument(self, path: str, argument: pb.Argument, hole: Callable[[], Leaf]) -> Fields:
        kind = argument.WhichOneof("kind")
        if kind == "operand":
            yield path, hole()
        elif kind in ("list", "tuple", "size"):
            items = getattr(argument, kind).items
            yield path, Leaf("literal", (kind, len(items)), f"{kind} of {len(items)}")
            for i, item in enumerate(items):
                yield from self._argument(f"{path}[{i}]", item, hole)
        elif kind == "dictionary":
            entries = argument.dictionary.entries
            yield path, Leaf("literal", (kind, len(entries)), f"dict of {len(entries)}")
            for i, entry in enumerate(entries):
                yield from self._argument(f"{path}.key[{i}]", entry.key, hole)
                yield from self._argument(f"{path}.item[{i}]", entry.value, hole)
        elif kind == "slice":
            yield path, literal("slice")
            for name in ("start", "stop", "step"):
                yield from self._argument(f"{path}.{name}", getattr(argument.slice, name), hole)
        else:
            yield path, self._plain(argument, kind)

    def _plain(self, argument: pb.Argument, kind: str | None) -> Leaf:
        if kind == "device":
            return self._device(argument.device)
        if kind == "device_text":
            leaf = self._device(argument.device_text)
            return leaf._replace(text=repr(leaf.text))
        if kind == "process_group":
            return Leaf("group", argument.process_group, self._group(argument.process_group))
        if kind == "expression":
            return self._expression(argument.expression)
        if kind == "text":
            text = self._body.strings[argument.text]
            return Leaf("literal", (kind, text), repr(text))
        if kind == "target":
            target = self._body.targets[argument.target]
            return Leaf("literal", (kind, target.kind, target.name), target.name)
        if kind in ("boolean", "integer", "floating"):
            return number(getattr(argument, kind))
        words = {"dtype": pb.Dtype, "layout": pb.Layout, "memory_format": pb.MemoryFormat}
        if kind in words:
            return literal(enum_word(words[kind], getattr(argument, kind)))
        return message_leaf(argument)

    def _device(self, index: int) -> Leaf:
        row = self._body.devices[index]
        word = enum_word(pb.DeviceType, row.type)
        real = row.slot - 1
        if row.slot and self._names is not None and index < len(self._names.device_indices):
            real = self._names.device_indices[index]
        return Leaf("device", Device(word, row.slot), f"{word}:{real}" if row.slot else word)

    def _group(self, index: int) -> str:
        names = self._names.process_groups if self._names is not None else ()
        return f"process group {names[index] if index < len(names) else index}"

    def _expression(self, index: int) -> Leaf:
        expression = self._expressions.read(index)
        return Leaf("expression", expression, expression.text())

    def _attribute(self, number: int, columns: pb.GraphColumns, paths: list[str]) -> Fields:
        row = columns.attributes[number]
        kind = row.WhichOneof("kind")
        yield "attribute", Leaf("attribute", number, paths[number] if paths else f"a{number}")
        yield "attribute.kind", literal(str(kind))
        if kind == "tensor":
            yield from self._tensor_attribute("attribute", row.tensor)
        elif kind == "graph":
            yield "attribute.graph", Leaf("graph", row.graph, f"nested graph {row.graph}")
        elif kind == "module":
            yield from self._module(row.module, columns)
        elif kind == "literal":
            yield from self._argument("attribute.literal", row.literal, _no_hole)
        else:
            yield "attribute.structure", self._tree(row)

    def _tree(self, row: pb.Attribute) -> Leaf:
        strings = tuple(self._texts_of(row.tree_spec))
        return Leaf("literal", (row.SerializeToString(deterministic=True), strings), "a structure")

    def _texts_of(self, spec: pb.TreeSpec) -> Iterator[str]:
        for key in spec.keys:
            if key.WhichOneof("kind") == "text":
                yield self._body.strings[key.text]
        for child in spec.children:
            yield from self._texts_of(child)

    def _module(self, module: pb.LeafModule, columns: pb.GraphColumns) -> Fields:
        yield "module.type", literal(module.type)
        yield "module.training", number(module.training)
        for option in module.options:
            yield from self._argument(f"module.{option.name}", option.value, _no_hole)
        for tensor in module.tensors:
            described = columns.attributes[tensor.attribute].tensor
            yield from self._tensor_attribute(f"module.{tensor.name}", described)

    def _tensor_attribute(self, path: str, row: pb.TensorAttribute) -> Fields:
        yield f"{path}.role", literal(enum_word(pb.TensorRole, row.role, "TENSOR_ROLE_"))
        yield f"{path}.memory", Leaf("memory", row.storage, f"memory {row.storage}")
        if row.HasField("content"):
            content = row.content
            text = f"{content.size_bytes} bytes, sha256 {content.sha256.hex()[:12]}"
            yield f"{path}.content", Leaf("literal", (content.sha256, content.size_bytes), text)
        yield from self._tensor(path, row.tensor)

    def _value(self, value: int) -> list[tuple[str, Leaf]]:
        if not value:
            return [("value", literal("not described"))]
        known = self._known_values.get(value)
        if known is None:
            known = self._known_values[value] = list(self._described("value", value - 1))
        return known

    def _described(self, path: str, index: int) -> Fields:
        row = self._body.values[index]
        kind = row.WhichOneof("kind")
        if kind == "tensor":
            yield path, literal("tensor")
            yield from self._tensor(path, row.tensor)
        elif kind in ("list", "tuple"):
            items = getattr(row, kind).items
            yield path, Leaf("literal", (kind, len(items)), f"{kind} of {len(items)}")
            for i, item in enumerate(items):
                yield from self._described(f"{path}[{i}]", item)
        elif kind == "expression":
            yield path, self._expression(row.expression)
        elif kind in ("boolean", "integer", "floating"):
            yield path, number(getattr(row, kind))
        else:
            yield path, message_leaf(row)

    def _tensor(self, path: str, index: int) -> Fields:
        row = self._body.tensors[index]
        yield f"{path}.dtype", literal(enum_word(pb.Dtype, row.dtype))
        yield f"{path}.device", self._device(row.device)
        if row.symbolic_shape:
            sizes = [self._expressions.read(i) for i in row.symbolic_shape]
            yield f"{path}.shape", Leaf("literal", ("symbolic", len(sizes)), "symbolic")
            for i, size in enumerate(sizes):
                yield f"{path}.shape[{i}]", Leaf("expression", size, size.text())
            for i, place in enumerate(row.symbolic_stride):
                yield f"{path}.stride[{i}]", self._expression(place)
            if row.symbolic_storage_offset:
                yield f"{path}.offset", self._expression(row.symbolic_storage_offset - 1)
        else:
            yield f"{path}.shape", literal(str(list(row.shape)))
            yield f"{path}.stride", literal(str(list(row.stride)) if row.stride else "contiguous")
            yield f"{path}.offset", number(row.storage_offset)
        if row.layout:
            yield f"{path}.layout", literal(enum_word(pb.Layout, row.layout))
        for flag in ("requires_grad", "is_parameter", "is_conjugate", "is_negative"):
            yield f"{path}.{flag}", number(getattr(row, flag))


def _no_hole() -> Leaf:
    return literal("an operand")


def _node_names(given: pb.GraphNames | None, count: int) -> list[str]:
    if given is None:
        return [f"n{i}" for i in range(count)]
    return [
        f"{given.stems[stem]}_{suffix - 1}" if suffix else given.stems[stem]
        for stem, suffix in zip(given.stem, given.suffix, strict=True)
    ]
