"""Descriptions of node values, which become fake tensors only on demand."""

# ruff: noqa: SLF001 - fake tensors have no public constructor

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sympy
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from lazyfx.errors import DecodeError
from lazyfx.shared.wire.columns import column
from lazyfx.shared.wire.format import DTYPE_OBJECTS, LAYOUT_OBJECTS
from lazyfx.shared.wire.values import symbols
from lazyfx.shared.wire.values.fake_copies import FakeMaker, PlainFake
from lazyfx.shared.wire.values.tensors import contiguous_strides, storage_extent
from lazyfx.v1 import graph_pb2 as pb

META_KEY = "lazyfx_value"


@dataclass(eq=False)
class ValueTables:
    """The tables of a decoded message that value descriptions refer to.

    Attributes:
        body: The message.
        devices: One per row of `body.devices`.
        process_groups: The name of each process group.
    """

    body: pb.GraphBody
    devices: Sequence[torch.device]
    process_groups: Sequence[str] = ()
    _symbols: dict[int, tuple[ShapeEnv, list[sympy.Symbol]]] = field(default_factory=dict)
    _argument_env: ShapeEnv | None = None
    _plain: dict[int, PlainFake] = field(default_factory=dict)
    _makers: dict[torch.device, FakeMaker] = field(default_factory=dict)
    _first_nodes: dict[int, tuple[int, int]] | None = None

    def plain(self, index: int, mode: FakeTensorMode) -> PlainFake | None:
        """The cached builder of the value of row `index` of `body.values`, if there is one."""
        found = self._plain.get(index)
        return found if found is not None and found.maker.mode is mode else None

    def learn(self, index: int, row: pb.TensorDescription, like: torch.Tensor) -> None:
        """Cache a plain tensor that was built for row `index`."""
        symbolic = row.symbolic_shape or row.symbolic_storage_offset
        if symbolic or row.layout or row.storage_offset or row.is_conjugate or row.is_negative:
            return
        mode, device = like.fake_mode, like.fake_device  # type: ignore[attr-defined]
        maker = self._makers.get(device)
        if maker is None or maker.mode is not mode:
            maker = self._makers[device] = FakeMaker(mode, device)
        self._plain[index] = PlainFake(
            maker, tuple(like.shape), like.stride(), like.dtype, like.requires_grad
        )

    def symbols(self, env: ShapeEnv) -> list[sympy.Symbol]:
        """One symbol of `env` per row of `body.symbols`, created at the first call."""
        found = self._symbols.get(id(env))
        if found is None:
            found = self._symbols[id(env)] = (env, symbols.create(self.body.symbols, env))
        return found[1]

    def first_node(self, index: int) -> tuple[int, int] | tuple[None, None]:
        """The first graph and node with a row of `body.values` as value."""
        if self._first_nodes is None:
            self._first_nodes = {}
            for graph, columns in enumerate(self.body.graphs):
                numbers, nodes = np.unique(column(columns.values), return_index=True)
                for number, node in zip(numbers.tolist(), nodes.tolist(), strict=True):
                    self._first_nodes.setdefault(number - 1, (graph, node))
        return self._first_nodes.get(index, (None, None))

    def argument_env(self) -> ShapeEnv:
        """The ShapeEnv of symbolic numbers in literal arguments of calls."""
        if self._argument_env is None:
            self._argument_env = ShapeEnv()
        return self._argument_env

    def latest_symbols(self) -> tuple[ShapeEnv, list[sympy.Symbol]] | None:
        """The ShapeEnv in which values were last built, and its symbols."""
        return next(reversed(self._symbols.values()), None)

    def __deepcopy__(self, memo: dict[int, Any]) -> ValueTables:
        return self


@dataclass(eq=False, slots=True)
class LazyValue:
    """The unbuilt value of a decoded node: a row of its message."""

    tables: ValueTables
    index: int

    def __deepcopy__(self, memo: dict[int, Any]) -> LazyValue:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


def materialize(node: Node, mode: FakeTensorMode) -> Any:
    """The value of a node for shape propagation.

    `meta["val"]` takes precedence; otherwise the node's lazy description is built under `mode`.
    Sizes are symbolic if the capture's were, with symbols of `mode.shape_env` (concrete example
    sizes if the mode has none).

    Returns:
        A FakeTensor, a number (symbolic or not), None, or lists and tuples of them; None also if
        the value is unknown.
    """
    if "val" in node.meta:
        return node.meta["val"]
    lazy = node.meta.get(META_KEY)
    return fake_value(lazy, mode) if isinstance(lazy, LazyValue) else None


def describe(node: Node) -> pb.ValueDescription | None:
    """The row that describes a decoded node's value, if the node has one."""
    lazy = node.meta.get(META_KEY)
    return lazy.tables.body.values[lazy.index] if isinstance(lazy, LazyValue) else None


def fake_value(value: LazyValue, mode: FakeTensorMode) -> Any:
    """Build a described value under `mode`; see `materialize`.

    Raises:
        DecodeError: torch cannot represent its sizes, or the symbols in them.
    """
    try:
        return _build(value.tables, value.index, mode)
    except (ArithmeticError, AssertionError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        graph, node = value.tables.first_node(value.index)
        field = f"values[{value.index}]"
        raise DecodeError(
            f"torch cannot represent this value: {reason}", field=field, node=node, graph=graph
        ) from error
    except DecodeError as error:
        graph, node = value.tables.first_node(value.index)
        raise error.within(node=node, graph=graph) from error.__cause__


def _build(tables: ValueTables, index: int, mode: FakeTensorMode) -> Any:
    plain = tables.plain(index, mode)
    if plain is not None:
        return plain.make()
    row = tables.body.values[index]
    kind = row.WhichOneof("kind")
    if kind == "tensor":
        description = tables.body.tensors[row.tensor]
        tensor = fake_tensor(tables, description, mode)
        tables.learn(index, description, tensor)
        return tensor
    if kind == "list":
        return [_build(tables, item, mode) for item in row.list.items]
    if kind == "tuple":
        return tuple(_build(tables, item, mode) for item in row.tuple.items)
    if kind == "expression":
        return _scalar(tables, row.expression, mode)
    return None if kind in ("none", None) else getattr(row, kind)


def _scalar(tables: ValueTables, index: int, mode: FakeTensorMode) -> Any:
    env = mode.shape_env
    if env is None:
        return symbols.example(tables.body, index)
    return symbols.scalar(tables.body, index, env, tables.symbols(env))


def fake_tensor(
    tables: ValueTables, row: pb.TensorDescription, mode: FakeTensorMode
) -> torch.Tensor:
    """A FakeTensor with the described metadata."""
    dtype = DTYPE_OBJECTS.get(row.dtype)
    if dtype is None:
        raise DecodeError(f"this torch has no dtype number {row.dtype}", field="tensors.dtype")
    shape: tuple[Any, ...] = tuple(row.shape)
    offset: Any = row.storage_offset
    if row.symbolic_shape:
        shape = tuple(_scalar(tables, index, mode) for index in row.symbolic_shape)
    if row.symbolic_storage_offset:
        offset = _scalar(tables, row.symbolic_storage_offset - 1, mode)
    strides: tuple[Any, ...] = tuple(row.stride)
    if row.symbolic_stride:
        strides = tuple(_scalar(tables, index, mode) for index in row.symbolic_stride)
    elif not strides:
        strides = symbols.contiguous(shape) if row.symbolic_shape else contiguous_strides(shape)
    device = tables.devices[row.device]
    layout = LAYOUT_OBJECTS.get(row.layout, torch.strided)
    if layout is not torch.strided:
        with mode:
            return torch.empty(shape, dtype=dtype, device=device, layout=layout)
    tensor: torch.Tensor
    if row.symbolic_shape or row.symbolic_storage_offset:
        with mode:
            tensor = torch.empty_strided(shape, strides, dtype=dtype, device=device)
            if not (type(offset) is int and offset == 0):
                extent = offset + 1
                for size, stride in zip(shape, strides, strict=True):
                    extent = extent + (size - 1) * stride
                base = torch.empty(extent, dtype=dtype, device=device)
                tensor = base.as_strided(shape, strides, offset)
    else:
        tensor = FakeTensor(mode, meta_tensor(dtype, shape, strides, offset), device)
    if row.is_conjugate or row.is_negative:
        with mode:
            tensor = tensor.conj() if row.is_conjugate else torch._neg_view(tensor)
    if row.requires_grad and (dtype.is_floating_point or dtype.is_complex):
        tensor.requires_grad_(True)
    return tensor


def meta_tensor(
    dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int], offset: int
) -> torch.Tensor:
    """A tensor on the meta device, without memory."""
    if not offset:
        return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype, device="meta")
    extent = storage_extent(shape, strides, offset)
    base = torch.empty(extent, dtype=dtype, device="meta")
    return base.as_strided(tuple(shape), tuple(strides), offset)
