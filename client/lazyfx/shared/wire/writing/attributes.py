"""Attributes on the way out: what GET_ATTR and CALL_MODULE nodes refer to."""

# ruff: noqa: SLF001 - which tensors are buffers is only seen in nn.Module's own table

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire import calling_convention, names
from lazyfx.shared.wire.arguments import argument_kind
from lazyfx.shared.wire.leaf_modules import leaf_classes, leaf_parametrizations
from lazyfx.shared.wire.values.tensors import content_digest, stand_in_of, storage_key
from lazyfx.shared.wire.writing import tree_specs
from lazyfx.shared.wire.writing.message_tables import Tables
from lazyfx.v1 import graph_pb2 as pb

_MISSING = object()


class Storages:
    """Numbers the storages of one message in first-use order."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def number(self, key: Any) -> int:
        """The number of a storage."""
        return self._numbers.setdefault(key, len(self._numbers))


class Children:
    """Numbers nested GraphModules in the order in which they are first reached."""

    def __init__(self, root: GraphModule) -> None:
        self.modules = [root]
        self._numbers: dict[int, int] = {id(root): 0}

    def number(self, module: GraphModule, parent: int) -> int:
        """Graph index of `module`, greater than that of the graph that names it.

        A module that is reached again from a graph behind it is written again.
        """
        found = self._numbers.get(id(module))
        if found is None or found <= parent:
            found = self._numbers[id(module)] = len(self.modules)
            self.modules.append(module)
        return found


class AttributeWriter:
    """Writes the attributes of one graph."""

    def __init__(
        self,
        owner: GraphModule,
        index: int,
        columns: pb.GraphColumns,
        tables: Tables,
        storages: Storages,
        children: Children,
    ) -> None:
        self.objects: list[object] = []
        self.paths: list[str] = []
        self._owner = owner
        self._index = index
        self._rows = columns.attributes
        self._tables = tables
        self._storages = storages
        self._children = children
        self._numbers: dict[tuple[str, bool], int] = {}
        self._verified: set[bytes] = set()

    def number(self, node: Node) -> int:
        """Attribute index of what a GET_ATTR or CALL_MODULE node refers to."""
        path = str(node.target)
        called = node.op == "call_module"
        found = self._numbers.get((path, called))
        if found is None:
            found = self._numbers[path, called] = self._write(path, called)
        return found

    def _write(self, path: str, called: bool) -> int:
        if not names.is_path(path):
            raise UnsupportedGraphError(
                f"the attribute path {path!r} cannot be sent",
                remedy="use letters, digits, '_' and '-' in attribute names",
            )
        holder, value = _resolve(self._owner, path)
        if leaf_parametrizations.computes(holder, path.rpartition(".")[2]):
            raise UnsupportedGraphError(
                f"the tensor {path!r}, which a parametrization computes at each read",
                remedy="call the module that holds it, or bake the parametrization in "
                "(torch.nn.utils.parametrize.remove_parametrizations)",
            )
        number = self._append(path, value)
        row = self._rows[number]
        if isinstance(value, torch.Tensor) and not called:
            self._write_tensor(row.tensor, value, _role(holder, path.rpartition(".")[2], value))
        elif isinstance(value, GraphModule):
            calling_convention.check_child(value, path)
            row.graph = self._children.number(value, self._index)
        elif isinstance(value, torch.nn.Module):
            self._write_module(row.module, value, path)
        elif called:
            raise UnsupportedGraphError(f"the called attribute {path!r} is not a module")
        elif tree_specs.is_tree_spec(value):
            tree_specs.write(value, row.tree_spec, self._tables)
        else:
            self._write_literal(row.literal, value, path)
        return number

    def _append(self, path: str, value: object) -> int:
        self._rows.add()
        self.objects.append(value)
        self.paths.append(path)
        return len(self.paths) - 1

    def _write_tensor(
        self, row: pb.TensorAttribute, tensor: torch.Tensor, role: pb.TensorRole.ValueType
    ) -> None:
        stand_in = stand_in_of(tensor)
        if stand_in is not None:
            source = stand_in.attribute
            row.tensor = self._tables.transfer(stand_in.tables).tensor(source.tensor)
            row.storage = self._storages.number((id(stand_in.tables), source.storage))
            row.role = source.role
            if source.HasField("content"):
                row.content.CopyFrom(source.content)
            return
        parameter = isinstance(tensor, torch.nn.Parameter)
        row.tensor = self._tables.tensor(tensor, parameter=parameter)
        row.storage = self._storages.number(storage_key(tensor))
        row.role = role
        if role == pb.TENSOR_ROLE_CONSTANT:
            row.content.CopyFrom(content_digest(tensor))

    def _write_module(self, row: pb.LeafModule, module: torch.nn.Module, path: str) -> None:
        row.type = leaf_classes.type_name(module)
        row.training = module.training
        options = leaf_classes.options(module)
        for name, value in options.items():
            option = row.options.add(name=name)
            argument_kind.walk(value, [], [], self._tables)
            argument_kind.write(value, option.value, self._tables)
        configuration = row.SerializeToString(deterministic=True)
        if configuration not in self._verified:
            leaf_classes.verify(module, options)
            self._verified.add(configuration)
        for name, tensor in leaf_classes.tensors(module).items():
            number = self._append(f"{path}.{name}", tensor)
            role = (
                pb.TENSOR_ROLE_PARAMETER
                if isinstance(tensor, torch.nn.Parameter)
                else pb.TENSOR_ROLE_BUFFER
            )
            self._write_tensor(self._rows[number].tensor, tensor, role)
            row.tensors.add(name=name, attribute=number)

    def _write_literal(self, row: pb.Argument, value: object, path: str) -> None:
        holes: list[Node] = []
        try:
            argument_kind.walk(value, [], holes, self._tables)
        except UnsupportedGraphError as error:
            raise error.within(attribute=path) from None
        argument_kind.write(value, row, self._tables)


def _resolve(owner: torch.nn.Module, path: str) -> tuple[object, object]:
    """The object at a dotted path and the one that holds it."""
    holder: object = owner
    value: object = owner
    for atom in path.split("."):
        holder = value
        value = getattr(holder, atom, _MISSING)
        if value is _MISSING:
            raise UnsupportedGraphError(f"the module has no attribute {path!r}")
    return holder, value


def _role(holder: object, name: str, tensor: torch.Tensor) -> pb.TensorRole.ValueType:
    if isinstance(tensor, torch.nn.Parameter):
        return pb.TENSOR_ROLE_PARAMETER
    if isinstance(holder, torch.nn.Module) and name in holder._buffers:
        return pb.TENSOR_ROLE_BUFFER
    return pb.TENSOR_ROLE_CONSTANT
