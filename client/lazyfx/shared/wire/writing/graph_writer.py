"""One graph as columns, on the way out."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire import names, process_groups
from lazyfx.shared.wire.arguments import argument_kind
from lazyfx.shared.wire.format import OPCODES
from lazyfx.shared.wire.node_factory import given_arguments
from lazyfx.shared.wire.targets import allow_table
from lazyfx.shared.wire.values.descriptions import META_KEY
from lazyfx.shared.wire.writing import row_cache
from lazyfx.shared.wire.writing.attributes import AttributeWriter
from lazyfx.shared.wire.writing.message_tables import Tables
from lazyfx.v1 import graph_pb2 as pb

_ABSENT = object()
_KEYWORDS = object()


class GraphWriter:
    """Writes the columns of one graph.

    Args:
        module: Holds the graph.
        columns: Where they are written.
        attributes: Writes what the graph refers to.
        tables: Tables of the message.
        calls: Rows of `calls` by what tells calls apart, of the whole message.
    """

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
        self._group_places = tables.groups.places
        self._numbers: dict[Node, int] = {}
        self._call_column: list[int] = []
        self._operand_column: list[int] = []
        self._value_column: list[int] = []

    def write(self, presentation: pb.GraphNames) -> None:
        """Fill the columns, and `presentation` with the names."""
        self._presentation = presentation
        nodes = list(self._module.graph.nodes)
        try:
            self._write_nodes(nodes)
        except UnsupportedGraphError as error:
            if error.node is not None:
                raise
            raise error.within(node=nodes[len(self._numbers)].name) from error.__cause__
        except KeyError as error:
            if not isinstance(error.args[0], Node):
                raise
            raise UnsupportedGraphError(
                f"an operand {error.args[0].name!r} that does not come before it in the graph",
                node=nodes[len(self._numbers)].name,
                remedy="run graph.lint() to find out which pass broke the graph",
            ) from None
        if not nodes or nodes[-1].op != "output":
            raise UnsupportedGraphError("the graph does not end with an output node")
        self._columns.calls.extend(self._call_column)
        self._columns.operands.extend(self._operand_column)
        if any(self._value_column):
            self._columns.values.extend(self._value_column)
        names.write_names(map(operator.attrgetter("name"), nodes), presentation)

    def _write_nodes(self, nodes: Sequence[Node]) -> None:
        numbers, tables, rows = self._numbers, self._tables, self._calls
        target_ids, group_places = self._target_ids, self._group_places
        walk, operands = argument_kind.walk_items, self._operand_column
        calls, values = self._call_column, self._value_column
        for number, (node, args, kwargs) in enumerate(given_arguments(nodes)):
            op = node.op
            holes: list[Node] = []
            if op == "call_function":
                target = node.target
                found = target_ids.get(id(target))
                key: list[Any] = [tables.target(target) if found is None else found]
            else:
                key = self._begin(node, op, number)
            if op != "get_attr":
                walk(self._given(node)[0] if group_places else args, key, holes, tables)
                if kwargs:
                    self._walk_keywords(node, key, holes)
                for hole in holes:
                    operands.append(number - numbers[hole])
            frozen = tuple(key)
            call = rows.get(frozen)
            if call is None:
                self._write_call(node, frozen)
                call = rows[frozen] = len(rows)
            calls.append(call)
            value = node.meta.get("val", _ABSENT)
            if op == "output":
                # What it gives is described at its operands. torch.export.load describes it
                # again, and a program must not be another for having been saved.
                values.append(0)
            elif type(value) is FakeTensor:
                # Nearly all nodes. Only of inputs it is told whether they are parameters.
                parameter = op == "placeholder" and vars(value).get("_is_param", False)
                values.append(1 + tables.fake_value(value, parameter))
            else:
                values.append(self._value(node, op, value))
            numbers[node] = number

    def _begin(self, node: Node, op: str, number: int) -> list[Any]:
        """The key of a node that calls no function, without its arguments."""
        if op == "get_attr" or op == "call_module":
            self._operand_column.append(self._attributes.number(node))
            return [op]
        if op == "placeholder":
            target = str(node.target)
            if target == node.name:
                return [op, 0]
            name = target.lstrip("*")
            if name != node.name:
                self._presentation.placeholder_targets.add(node=number, target=name)
            return [op, len(target) - len(name)]
        return [op, node.target]

    def _walk_keywords(self, node: Node, key: list[Any], holes: list[Node]) -> None:
        kwargs = self._given(node)[1]
        key.append(_KEYWORDS)
        if node.target is dict or node.target == "update":
            _check_ordered(kwargs)
        for name in sorted(kwargs) if len(kwargs) > 1 else kwargs:
            key.append(name)
            argument_kind.walk(kwargs[name], key, holes, self._tables)

    def _given(self, node: Node) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """Arguments of a node, the name of its process group marked as one."""
        place = self._group_places.get(self._target_ids.get(id(node.target), -1))
        if place is None:
            return node.args, node.kwargs
        return process_groups.mark(place, node.args, node.kwargs)

    def _write_call(self, node: Node, key: tuple[Any, ...]) -> None:
        op, tables = node.op, self._tables
        rows = tables.body.calls
        if op == "get_attr":
            rows.add(opcode=OPCODES[op])
        elif op == "call_function":
            tail = key[1:]
            known = None if allow_table.is_lookup(node.target) else row_cache.CALLS.get(tail)
            row = rows.add()
            if known is not None:
                row.ParseFromString(known)
                row.target = 1 + tables.target(node.target)
                return
            row.opcode = OPCODES[op]
            self._write_arguments(node, row)
            if argument_kind.is_closed(tail):
                target, row.target = row.target, 0
                row_cache.CALLS.put(tail, row.SerializeToString())
                row.target = target
        else:
            self._write_arguments(node, rows.add(opcode=OPCODES[op]))

    def _write_arguments(self, node: Node, row: pb.Call) -> None:
        """Write the target of a call, and its arguments."""
        op, tables = node.op, self._tables
        if op == "call_function":
            reason = allow_table.forbidden_lookup(node.target, node.args, node.kwargs)
            if reason is not None:
                raise UnsupportedGraphError(
                    f"{getattr(node.target, '__name__', node.target)} {reason}",
                    remedy="read attributes of tensors only",
                )
            row.target = 1 + tables.target(node.target)
        elif op == "call_method":
            if node.target not in allow_table.methods():
                raise UnsupportedGraphError(
                    f"a call of the method {node.target!r}", remedy="use a method of torch.Tensor"
                )
            row.target = 1 + tables.named_target((pb.TARGET_KIND_METHOD, str(node.target)))
        elif op == "placeholder":
            row.stars = _stars(str(node.target))
        elif op == "output" and (node.kwargs or len(node.args) != 1):
            raise UnsupportedGraphError("the output does not have exactly one argument")
        tables.sorting = op == "call_function" and tables.sorts_dictionaries(row.target - 1)
        tables.spelling = tables.sorting or op == "call_method"
        args, kwargs = self._given(node)
        for argument in args:
            argument_kind.write(argument, row.args.add(), tables)
        for name in sorted(kwargs):
            keyword = row.kwargs.add(name=tables.text(name))
            argument_kind.write(kwargs[name], keyword.value, tables)
        tables.sorting = tables.spelling = False

    def _value(self, node: Node, op: str, value: object) -> int:
        """Number of the description of a node's value; `value` is its "val"."""
        meta = node.meta
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


def _check_ordered(kwargs: Mapping[str, Any]) -> None:
    """Keywords are sorted on the wire; of a dictionary made of them the order would be another."""
    if [*kwargs] != sorted(kwargs):
        raise UnsupportedGraphError(
            "a dictionary made of keyword arguments, whose order would be lost",
            remedy="sort the keywords, or pass a dictionary",
        )


def _stars(target: str) -> int:
    return len(target) - len(target.lstrip("*"))
