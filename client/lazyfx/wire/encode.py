"""torch.fx graph -> bytes and digest."""

# ruff: noqa: SLF001 - the calling convention of an exported graph has no public spelling

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import GraphModule, Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.v1 import graph_pb2 as pb
from lazyfx.wire import arguments, convention, names, targets
from lazyfx.wire.attributes import AttributeWriter, Children, Storages
from lazyfx.wire.format import FORMAT_VERSION, OPCODES
from lazyfx.wire.tables import Tables
from lazyfx.wire.values import META_KEY

_ABSENT = object()
_KEYWORDS = object()


@dataclass(frozen=True, slots=True)
class EncodedGraph:
    """A graph on the wire, and the caller's objects that it refers to.

    Attributes:
        body: Canonical GraphBody bytes: what the graph computes.
        presentation: Names and device indices.
        digest: SHA-256 of `body`, 32 bytes.
        attributes: For each graph, for each of its attributes: the tensor, module,
            GraphModule or literal of the caller.
        nodes: Number of nodes of the root graph.
    """

    body: bytes
    presentation: pb.Presentation
    digest: bytes
    attributes: tuple[tuple[object, ...], ...]
    nodes: int

    def message(self) -> pb.Graph:
        """The graph as the service takes it."""
        return pb.Graph(
            format_version=FORMAT_VERSION, body=self.body, presentation=self.presentation
        )


def encode(module: GraphModule, *, constants: Literal["digest"] = "digest") -> EncodedGraph:
    """Write a graph in the wire format.

    Tensors that the graph reads by get_attr are described, not sent: parameters
    and registered buffers by their metadata, other tensors (lifted constants) by
    the digest of their bytes too. Metadata of nodes comes from `meta["val"]`,
    else `meta["example_value"]`, else from what the graph was decoded from.

    Args:
        module: A graph of any torch.fx capture; it is not changed.
        constants: How constants travel. "digest" is the only way of version 1.

    Raises:
        UnsupportedGraphError: The graph holds something that the format cannot
            carry; the error names the node and the remedy.
    """
    if constants != "digest":
        raise ValueError(f"constants travel by digest, not by {constants!r}")
    convention.check_root(module)
    tables = Tables()
    storages, children = Storages(), Children(module)
    presentation = pb.Presentation()
    objects: list[tuple[object, ...]] = []
    calls: dict[tuple[Any, ...], int] = {}
    # The list grows while it is walked: children are numbered when first reached.
    for index, graph_module in enumerate(children.modules):
        columns = tables.body.graphs.add()
        attributes = AttributeWriter(graph_module, index, columns, tables, storages, children)
        writer = _GraphWriter(graph_module, columns, attributes, tables, calls)
        names_of_graph = presentation.graphs.add()
        writer.write(names_of_graph)
        names_of_graph.attribute_paths.extend(attributes.paths)
        objects.append(tuple(attributes.objects))
    presentation.device_indices.extend(tables.device_indices)
    _write_signature(module, presentation)
    body = tables.body.SerializeToString(deterministic=True)
    return EncodedGraph(
        body=body,
        presentation=presentation,
        digest=hashlib.sha256(body).digest(),
        attributes=tuple(objects),
        nodes=len(tables.body.graphs[0].calls),
    )


def digest(module: GraphModule) -> str:
    """Hex SHA-256 of what a graph computes; names, kwarg order and source lines do not count.

    Raises:
        UnsupportedGraphError: As `encode` does.
    """
    return encode(module).digest.hex()


class _GraphWriter:
    """Writes the columns of one graph."""

    def __init__(
        self,
        module: GraphModule,
        columns: pb.GraphColumns,
        attributes: AttributeWriter,
        tables: Tables,
        calls: dict[tuple[Any, ...], int],
    ) -> None:
        self._module = module
        self._columns = columns
        self._attributes = attributes
        self._tables = tables
        self._calls = calls
        self._target_ids = tables.target_ids
        self._numbers: dict[Node, int] = {}
        self._call_column: list[int] = []
        self._operand_column: list[int] = []
        self._value_column: list[int] = []

    def write(self, presentation: pb.GraphNames) -> None:
        """Fill the columns, and `presentation` with the names."""
        node: Node | None = None
        self._presentation = presentation
        try:
            for node in self._module.graph.nodes:
                self._write_node(node)
        except UnsupportedGraphError as error:
            if error.node is not None or node is None:
                raise
            raise UnsupportedGraphError(
                error.reason, node=node.name, remedy=error.remedy
            ) from error.__cause__
        except KeyError as error:
            if not isinstance(error.args[0], Node) or node is None:
                raise
            raise UnsupportedGraphError(
                f"an operand {error.args[0].name!r} that does not come before it in the graph",
                node=node.name,
                remedy="run graph.lint() to find out which pass broke the graph",
            ) from None
        if node is None or node.op != "output":
            raise UnsupportedGraphError("the graph does not end with an output node")
        self._columns.calls.extend(self._call_column)
        self._columns.operands.extend(self._operand_column)
        if any(self._value_column):
            self._columns.values.extend(self._value_column)
        names.write_names([node.name for node in self._numbers], presentation)

    def _write_node(self, node: Node) -> None:
        numbers = self._numbers
        number = len(numbers)
        op, operands = node.op, self._operand_column
        holes: list[Node] = []
        key: list[Any]
        if op == "call_function":
            target = node.target
            found = self._target_ids.get(id(target))
            key = [self._tables.target(target) if found is None else found]
        elif op == "get_attr" or op == "call_module":
            operands.append(self._attributes.number(node))
            key = [op]
        elif op == "placeholder":
            _write_placeholder_target(node, number, self._presentation)
            key = [op, _stars(str(node.target))]
        else:
            key = [op, node.target]
        if op != "get_attr":
            arguments.walk_items(node.args, key, holes, self._tables)
            kwargs = node.kwargs
            if kwargs:
                key.append(_KEYWORDS)
                if node.target is dict or node.target == "update":
                    _check_ordered(kwargs)
                for name in sorted(kwargs) if len(kwargs) > 1 else kwargs:
                    key.append(name)
                    arguments.walk(kwargs[name], key, holes, self._tables)
        for hole in holes:
            operands.append(number - numbers[hole])
        frozen = tuple(key)
        call = self._calls.get(frozen)
        if call is None:
            self._write_call(node)
            call = self._calls[frozen] = len(self._calls)
        self._call_column.append(call)
        self._value_column.append(self._value(node, op))
        numbers[node] = number

    def _write_call(self, node: Node) -> None:
        op, tables = node.op, self._tables
        row = tables.body.calls.add(opcode=OPCODES[op])
        if op == "get_attr":
            return
        if op == "call_function":
            reason = targets.forbidden_lookup(node.target, node.args, node.kwargs)
            if reason is not None:
                raise UnsupportedGraphError(
                    f"{getattr(node.target, '__name__', node.target)} {reason}",
                    remedy="read attributes of tensors only",
                )
            row.target = 1 + tables.target(node.target)
        elif op == "call_method":
            if node.target not in targets.methods():
                raise UnsupportedGraphError(
                    f"a call of the method {node.target!r}", remedy="use a method of torch.Tensor"
                )
            row.target = 1 + tables.named_target((pb.TARGET_KIND_METHOD, str(node.target)))
        elif op == "placeholder":
            row.stars = _stars(str(node.target))
        elif op == "output" and (node.kwargs or len(node.args) != 1):
            raise UnsupportedGraphError("the output does not have exactly one argument")
        tables.sorting = op == "call_function" and tables.sorts_dictionaries(row.target - 1)
        for argument in node.args:
            arguments.write(argument, row.args.add(), tables)
        for name in sorted(node.kwargs):
            keyword = row.kwargs.add(name=tables.text(name))
            arguments.write(node.kwargs[name], keyword.value, tables)
        tables.sorting = False

    def _value(self, node: Node, op: str) -> int:
        meta = node.meta
        value = meta.get("val", _ABSENT)
        if value is _ABSENT:
            value = meta.get("example_value", _ABSENT)
            if value is _ABSENT:
                value = meta.get(META_KEY, _ABSENT)
                if value is _ABSENT:
                    return 0
        if op != "placeholder":
            found = self._tables.value(value)
            return 0 if found is None else 1 + found
        parameter = isinstance(value, torch.Tensor) and isinstance(value, torch.nn.Parameter)
        found = self._tables.value(value, parameter=parameter)
        if found is None:
            raise UnsupportedGraphError(
                f"an input of type {type(value).__module__}.{type(value).__qualname__}",
                remedy="pass tensors, numbers, or tuples and lists of these",
            )
        return 1 + found


def _check_ordered(kwargs: dict[str, Any]) -> None:
    """Keywords are sorted on the wire; of a dictionary made of them the order would be another."""
    if [*kwargs] != sorted(kwargs):
        raise UnsupportedGraphError(
            "a dictionary made of keyword arguments, whose order would be lost",
            remedy="sort the keywords, or pass a dictionary",
        )


def _stars(target: str) -> int:
    return len(target) - len(target.lstrip("*"))


def _write_placeholder_target(node: Node, number: int, presentation: pb.GraphNames) -> None:
    target = str(node.target).lstrip("*")
    if target != node.name:
        presentation.placeholder_targets.add(node=number, target=target)


def _write_signature(module: GraphModule, presentation: pb.Presentation) -> None:
    codegen = module.graph._codegen
    if not isinstance(codegen, torch.fx.graph._PyTreeCodeGen):
        return
    signature = presentation.signature
    argument_names = [name for name in codegen.pytree_info.orig_args if name != "self"]
    signature.argument_names.extend(argument_names)
    spec = codegen.pytree_info.in_spec
    if spec.type is tuple and spec.num_children == 2:
        signature.positional_count = spec.child(0).num_children
