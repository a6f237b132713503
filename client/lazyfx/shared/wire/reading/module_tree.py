"""Attributes on the way in: the module that a decoded graph reads from and calls into."""

# ruff: noqa: SLF001 - modules and buffers are placed in nn.Module's own tables

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared.wire.arguments import argument_kind
from lazyfx.shared.wire.format import DTYPE_OBJECTS, LAYOUT_OBJECTS
from lazyfx.shared.wire.leaf_modules import leaf_classes
from lazyfx.shared.wire.names import MAX_NAME
from lazyfx.shared.wire.reading.templates import TemplateReader
from lazyfx.shared.wire.values.descriptions import ValueTables, meta_tensor
from lazyfx.shared.wire.values.tensors import StandIn, contiguous_strides
from lazyfx.shared.wire.writing import tree_specs
from lazyfx.shared.wire.writing.message_tables import Tables
from lazyfx.v1 import graph_pb2 as pb

# Pairs of a node and the attribute that it reads or calls.
Uses = Iterable[tuple[int, int]]
# (graph index, attribute index, attribute) -> the tensor, or None for a stand-in.
Bind = Callable[[int, int, pb.Attribute], torch.Tensor | None]


class AttributeReader:
    """Builds the attributes of the graphs of one message."""

    def __init__(
        self,
        body: pb.GraphBody,
        tables: ValueTables,
        templates: TemplateReader,
        bind: Bind | None,
    ) -> None:
        self._body = body
        self._tables = tables
        self._templates = templates
        self._bind = bind
        self._prototypes: dict[tuple[str | bytes, ...], nn.Module] = {}
        self._stand_ins: dict[tuple[int, int, int], torch.Tensor] = {}

    def root(
        self,
        number: int,
        paths: Sequence[str],
        modules: Mapping[int, GraphModule],
        uses: Uses = (),
    ) -> nn.Module:
        """A module that holds the attributes of graph `number` at `paths`.

        Args:
            number: The graph.
            paths: Where each attribute is.
            modules: The graphs inside of it.
            uses: Nodes with the attribute that each reads, so that errors name one.

        Raises:
            DecodeError: An attribute makes no sense, or two paths get in each other's way.
        """
        rows = self._body.graphs[number].attributes
        root = nn.Module()
        owned = {
            tensor.attribute
            for row in rows
            if row.WhichOneof("kind") == "module"
            for tensor in row.module.tensors
        }
        values: list[torch.Tensor | None] = []
        at = 0
        try:
            for at, row in enumerate(rows):
                values.append(self._tensor_of(number, at, row))
            for at in _placing_order(rows, paths):
                if at not in owned:
                    value = self._value(number, rows[at], values[at], values, modules)
                    _place(root, paths[at], value, rows[at].tensor.role)
        except DecodeError as error:
            node = next((reader for reader, attribute in uses if attribute == at), None)
            field = f"graphs[{number}].attributes[{at}]"
            raise error.within(field, node=node, graph=number) from error.__cause__
        return root

    def keep_constants(self, module: GraphModule, number: int, paths: Sequence[str]) -> None:
        """Make constants plain attributes again: a GraphModule registers them as buffers."""
        for row, path in zip(self._body.graphs[number].attributes, paths, strict=True):
            if row.tensor.role == pb.TENSOR_ROLE_CONSTANT:
                parent, _, name = path.rpartition(".")
                owner = module.get_submodule(parent)
                tensor = owner._buffers.pop(name, None)
                if tensor is not None:
                    setattr(owner, name, tensor)

    def _tensor_of(self, graph: int, number: int, row: pb.Attribute) -> torch.Tensor | None:
        if row.WhichOneof("kind") != "tensor":
            return None
        if row.tensor.tensor >= len(self._body.tensors):
            raise DecodeError("an index out of range of tensors", field="tensor")
        description = self._body.tensors[row.tensor.tensor]
        is_parameter = row.tensor.role == pb.TENSOR_ROLE_PARAMETER
        tensor = self._bind(graph, number, row) if self._bind else None
        if tensor is None:
            # Tied tensors are one tensor again.
            key = (row.tensor.storage, row.tensor.tensor, row.tensor.role)
            if key not in self._stand_ins:
                self._stand_ins[key] = self._stand_in(row.tensor, description, is_parameter)
            return self._stand_ins[key]
        if is_parameter and not isinstance(tensor, nn.Parameter):
            return nn.Parameter(tensor, requires_grad=description.requires_grad)
        return tensor

    def _stand_in(
        self, row: pb.TensorAttribute, description: pb.TensorDescription, is_parameter: bool
    ) -> torch.Tensor:
        dtype = DTYPE_OBJECTS.get(description.dtype)
        if dtype is None or row.role not in _ROLES:
            raise DecodeError("a tensor of unknown dtype or role", field="tensor")
        shape = tuple(description.shape)
        if description.symbolic_shape or min(shape, default=0) < 0:
            raise DecodeError("an attribute has a static shape", field="tensor")
        layout = LAYOUT_OBJECTS.get(description.layout, torch.strided)
        tensor: torch.Tensor
        try:
            if layout is torch.strided:
                strides = tuple(description.stride) or contiguous_strides(shape)
                tensor = meta_tensor(dtype, shape, strides, description.storage_offset)
            else:
                tensor = torch.empty(shape, dtype=dtype, layout=layout, device="meta")
        except (RuntimeError, ValueError, TypeError) as error:
            raise DecodeError(f"not a tensor: {error}", field="tensor") from None
        if is_parameter:
            tensor = nn.Parameter(tensor, requires_grad=description.requires_grad)
        elif description.requires_grad:
            tensor.requires_grad_(True)
        tensor.lazyfx_stand_in = StandIn(self._tables, row)  # type: ignore[attr-defined]
        return tensor

    def _value(
        self,
        number: int,
        row: pb.Attribute,
        tensor: torch.Tensor | None,
        tensors: Sequence[torch.Tensor | None],
        modules: Mapping[int, GraphModule],
    ) -> Any:
        kind = row.WhichOneof("kind")
        if kind == "tensor":
            return tensor
        if kind == "graph":
            if row.graph <= number or row.graph not in modules:
                raise DecodeError(f"graph {row.graph} does not come after graph {number}")
            return modules[row.graph]
        if kind == "module":
            return self._leaf(row.module, tensors)
        if kind == "literal":
            return self._templates.literal(row.literal)
        if kind == "tree_spec":
            return tree_specs.read(row.tree_spec, self._body)
        raise DecodeError("an attribute of unknown kind")

    def _leaf(self, row: pb.LeafModule, tensors: Sequence[torch.Tensor | None]) -> nn.Module:
        options = {option.name: self._templates.literal(option.value) for option in row.options}
        if len(options) != len(row.options):
            raise DecodeError("an option is given twice", field="module.options")
        values: dict[str, torch.Tensor] = {}
        for entry in row.tensors:
            value = tensors[entry.attribute] if entry.attribute < len(tensors) else None
            if value is None:
                raise DecodeError(f"{entry.name[:100]!r} is not a tensor", field="module.tensors")
            values[entry.name] = value
        key: tuple[str | bytes, ...] = (
            row.type,
            *[option.SerializeToString() for option in row.options],
        )
        template = self._prototypes.get(key)
        if template is None:
            template = leaf_classes.prototype(row.type, options)
            _check_spelling(template, options)
            self._prototypes[key] = template
        return leaf_classes.build(template, values, training=row.training)


def _check_spelling(template: nn.Module, given: Mapping[str, Any]) -> None:
    """Refuse options that are not those which are read back from the module made of them."""
    try:
        found = {name: _key(value) for name, value in leaf_classes.options(template).items()}
    except UnsupportedGraphError as error:
        raise DecodeError(error.reason, field="module.options") from None
    spelled = {name: _key(value) for name, value in given.items()}
    for name in sorted(found.keys() | spelled.keys()):
        if found.get(name) != spelled.get(name):
            raise DecodeError(
                f"the option {name[:100]!r} is missing, or differs from how the module reports it",
                field="module.options",
            )


def _key(option: object) -> list[Any]:
    key: list[Any] = []
    argument_kind.walk(option, key, [], Tables())
    return key


_ROLES = frozenset({pb.TENSOR_ROLE_PARAMETER, pb.TENSOR_ROLE_BUFFER, pb.TENSOR_ROLE_CONSTANT})


def _placing_order(rows: Sequence[pb.Attribute], paths: Sequence[str]) -> list[int]:
    """Modules before what is read from within them, outer ones first.

    A graph may read a tensor of a leaf module before it calls the module, and call a part
    before the whole.
    """

    def rank(number: int) -> int:
        if rows[number].WhichOneof("kind") in ("module", "graph"):
            return paths[number].count(".")
        return MAX_NAME  # a path has fewer dots than characters

    return sorted(range(len(rows)), key=rank)


def _place(root: nn.Module, path: str, value: Any, role: int) -> None:
    """Put a value at a dotted path, making plain modules on the way."""
    *parents, name = path.split(".")
    owner = root
    for parent in parents:
        child = owner._modules.get(parent)
        if child is None:
            if hasattr(owner, parent):
                raise DecodeError(f"the path {path!r} leads through something that is not a module")
            child = nn.Module()
            owner.add_module(parent, child)
        owner = child
    present = getattr(owner, name, None)
    if present is not None:
        # The same tensor read by get_attr and held by a leaf module, or the same leaf module
        # read, called, or part of another: any other second value would be a lie.
        if _is_same(present, value):
            return
        raise DecodeError(f"two attributes have the path {path!r}")
    if isinstance(value, torch.Tensor) and role == pb.TENSOR_ROLE_BUFFER:
        owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)


def _is_same(present: object, value: Any) -> bool:
    """Whether two values of one path are one tensor or one leaf module of the caller."""
    if present is value:
        return True
    if isinstance(present, torch.Tensor):
        return _alike(present, value)
    if not isinstance(present, nn.Module) or not isinstance(value, nn.Module):
        return False
    if not leaf_classes.are_configured_alike(present, value):
        return False
    ours, theirs = leaf_classes.tensors(present), leaf_classes.tensors(value)
    return ours.keys() == theirs.keys() and all(_is_same(ours[k], theirs[k]) for k in ours)


def _alike(present: torch.Tensor, value: Any) -> bool:
    """Whether both stand in for one tensor of the caller."""
    ours = getattr(present, "lazyfx_stand_in", None)
    theirs = getattr(value, "lazyfx_stand_in", None)
    return (
        isinstance(ours, StandIn)
        and isinstance(theirs, StandIn)
        and ours.tables is theirs.tables
        and ours.attribute == theirs.attribute
    )
