"""Tables of a message under construction: each distinct row is written once."""

# ruff: noqa: SLF001 - what is fake or symbolic has no public spelling

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.arguments.scalar_kinds import canonical_float
from lazyfx.shared.wire.format import DEVICE_TYPES, DTYPES, LAYOUTS, MAX_DEPTH, MAX_INT64, MIN_INT64
from lazyfx.shared.wire.process_groups import Groups
from lazyfx.shared.wire.targets import allow_table, unknown_targets
from lazyfx.shared.wire.values.descriptions import LazyValue, ValueTables
from lazyfx.shared.wire.values.symbolic import ExpressionWriter
from lazyfx.shared.wire.values.tensors import contiguous_strides
from lazyfx.shared.wire.writing import row_cache
from lazyfx.shared.wire.writing.transfer import Transfer
from lazyfx.v1 import graph_pb2 as pb

# Only these can be conjugated.
_COMPLEX = frozenset({torch.complex32, torch.complex64, torch.complex128})
# Classes all of whose meaning the format describes; another class with the same sizes may
# compute something else.
_CLASSES = frozenset({torch.Tensor, FakeTensor, torch.nn.Parameter})
# Of a blocked or hybrid sparse tensor the sizes do not tell the layout.
_DESCRIBED_LAYOUTS = frozenset({torch.sparse_coo, torch.sparse_csr, torch.sparse_csc})


class Tables:
    """Interns the rows of one GraphBody in first-use order.

    Attributes:
        body: The message so far.
        device_indices: Real index of each row of `body.devices`.
        target_ids: Indices of the targets met so far, by identity of the callable.
        groups: The process groups met so far.
        sorting: Whether the call that is being written takes dictionaries sorted by key.
        spelling: Whether it takes text such as "cuda:0" for a device.
    """

    def __init__(self) -> None:
        self.body = pb.GraphBody()
        self.expressions = ExpressionWriter(self.body)
        self.device_indices: list[int] = []
        self._texts: dict[str, int] = {}
        self._targets: dict[allow_table.Key, int] = {}
        self.target_ids: dict[int, int] = {}
        self.groups = Groups(self.body)
        self.sorting = self.spelling = False
        self._devices: dict[tuple[str, int | None], int] = {}
        self._slots: dict[str, int] = {}
        self._tensors: dict[Any, int] = {}
        self._values: dict[Any, int] = {}
        self._fakes: dict[Any, int] = {}
        self._transfers: dict[int, Transfer] = {}

    def text(self, value: str) -> int:
        """Index of a string."""
        found = self._texts.get(value)
        if found is None:
            try:
                self.body.strings.append(value)
            except UnicodeEncodeError:
                raise UnsupportedGraphError(
                    f"the string {value[:100]!r} holds a lone surrogate"
                ) from None
            found = self._texts[value] = len(self._texts)
        return found

    def target(self, target: Any) -> int:
        """Index of a callable of the allow-table."""
        found = self.target_ids.get(id(target))
        if found is None:
            key = allow_table.name_of(target)
            if key is None:
                raise unknown_targets.unknown_target_error(target)
            found = self.target_ids[id(target)] = self.named_target(key)
            self.groups.register_target(target, found)
        return found

    def named_target(self, key: allow_table.Key) -> int:
        """Index of a target by kind and name."""
        found = self._targets.get(key)
        if found is None:
            found = self._targets[key] = len(self._targets)
            self.body.targets.add(kind=key[0], name=key[1])
        return found

    def sorts_dictionaries(self, target: int | str) -> bool:
        """Whether a call sorts the dictionaries among its arguments.

        Args:
            target: Index of a function; or an opcode, of which none does.
        """
        return type(target) is int and allow_table.sorts_dictionaries(self.body.targets[target])

    def device(self, device: torch.device) -> int:
        """Index of a device; real indices become slots in first-use order."""
        key = (device.type, device.index)
        found = self._devices.get(key)
        if found is None:
            number = DEVICE_TYPES.get(device.type)
            if number is None:
                raise UnsupportedGraphError(f"devices of type {device.type!r} are not supported")
            slot = 0
            if device.index is not None:
                slot = self._slots[device.type] = self._slots.get(device.type, 0) + 1
            found = self._devices[key] = len(self._devices)
            self.body.devices.add(type=number, slot=slot)
            self.device_indices.append(device.index or 0)
        return found

    def tensor(self, tensor: torch.Tensor, *, parameter: bool = False) -> int:
        """Index of the description of a tensor, fake or real."""
        if type(tensor) not in _CLASSES or tensor.is_nested:
            raise _refuse(tensor)
        symbolic = tensor._has_symbolic_sizes_strides
        layout = tensor.layout
        strided = layout is torch.strided
        if not strided and (layout not in _DESCRIBED_LAYOUTS or tensor.dense_dim()):
            raise _refuse(tensor)
        device = tensor.fake_device if type(tensor) is FakeTensor else tensor.device
        size: Any = tensor.shape
        stride: Any = tensor.stride() if strided else ()
        offset: Any = tensor.storage_offset() if strided else 0
        if symbolic:
            write = self.expressions.size
            size = tuple(map(write, size))
            stride = () if _is_contiguous_symbolic(tensor) else tuple(map(write, stride))
            offset = 0 if type(offset) is int and offset == 0 else 1 + write(offset)
        key = (
            tensor.dtype, size, stride, offset, device, tensor.requires_grad, layout,
            symbolic, parameter, tensor.is_conj(), tensor.is_neg(),
        )  # fmt: skip
        found = self._tensors.get(key)
        if found is None:
            found = None if symbolic else self._known_tensor(key, device)
            if found is None:
                row = self._describe(tensor, parameter, size, stride, offset)
                if not symbolic:
                    _remember(key, row)
                found = self.add_tensor(row)
            self._tensors[key] = found
        return found

    def _known_tensor(self, key: tuple[Any, ...], device: torch.device) -> int | None:
        """Index of a description that some graph had before; None where none had."""
        known = row_cache.TENSORS.get(key)
        if known is None:
            return None
        number = self.device(device)
        if number:
            row = pb.TensorDescription.FromString(known)
            row.device = number
            return self.add_tensor(row)
        found = self._tensors.get(known)
        if found is None:
            found = self._tensors[known] = len(self.body.tensors)
            self.body.tensors.add().MergeFromString(known)
        return found

    def _describe(
        self, tensor: torch.Tensor, parameter: bool, size: Any, stride: Any, offset: int
    ) -> pb.TensorDescription:
        if tensor.is_quantized or tensor.dtype not in DTYPES:
            raise _refuse(tensor)
        row = pb.TensorDescription(
            dtype=DTYPES[tensor.dtype],
            device=self.device(tensor.device),
            requires_grad=tensor.requires_grad,
            is_parameter=parameter,
            is_conjugate=tensor.is_conj(),
            is_negative=tensor.is_neg(),
        )
        if tensor.layout is not torch.strided:
            row.layout = LAYOUTS[tensor.layout]
        if tensor._has_symbolic_sizes_strides:
            row.symbolic_shape.extend(size)
            row.symbolic_stride.extend(stride)
            row.symbolic_storage_offset = offset
            return row
        row.shape.extend(size)
        row.storage_offset = offset
        if stride != contiguous_strides(size):
            row.stride.extend(stride)
        return row

    def add_tensor(self, row: pb.TensorDescription) -> int:
        """Intern a description whose indices are of this message already."""
        return self._intern(self.body.tensors, row)

    def add_value(self, row: pb.ValueDescription) -> int:
        """Intern a value description whose indices are of this message already."""
        return self._intern(self.body.values, row)

    def _intern(self, rows: Any, row: Any) -> int:
        key = row.SerializeToString()
        table = self._tensors if rows is self.body.tensors else self._values
        found: int | None = table.get(key)
        if found is None:
            found = table[key] = len(rows)
            rows.append(row)
        return found

    def value(self, value: Any, *, parameter: bool = False, depth: int = 0) -> int | None:
        """Index of the description of a node's value; None where the format has none."""
        if type(value) is FakeTensor:
            return self.fake_value(value, parameter)
        if isinstance(value, torch.Tensor):
            return self._tensor_value(value, parameter)
        if isinstance(value, LazyValue):
            return self.lazy_value(value)
        if depth >= MAX_DEPTH:
            raise UnsupportedGraphError("a node's value is nested too deeply")
        description = pb.ValueDescription()
        if value is None:
            description.none.SetInParent()
        elif isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
            description.expression = self.expressions.scalar(value)
        elif isinstance(value, (list, tuple)):
            items = [self.value(item, depth=depth + 1) for item in value]
            if None in items:
                return None
            sequence = description.list if isinstance(value, list) else description.tuple
            sequence.SetInParent()
            sequence.items.extend(items)  # type: ignore[arg-type]
        elif type(value) is bool:
            description.boolean = value
        elif type(value) is int and MIN_INT64 <= value <= MAX_INT64:
            description.integer = value
        elif type(value) is float:
            description.floating = canonical_float(value)
        else:
            return None
        return self.add_value(description)

    def fake_value(self, tensor: FakeTensor, parameter: bool = False) -> int:
        """`value` of the commonest kind: nearly all nodes have static fake tensors."""
        if tensor._has_symbolic_sizes_strides or tensor.layout is not torch.strided:
            return self._tensor_value(tensor, parameter)
        dtype = tensor.dtype
        key = (
            tensor.shape, tensor.stride(), dtype, tensor.fake_device, tensor.requires_grad,
            tensor.storage_offset(), dtype in _COMPLEX and tensor.is_conj(), tensor.is_neg(),
            parameter,
        )  # fmt: skip
        found = self._fakes.get(key)
        if found is None:
            row = self._known_tensor(key, tensor.fake_device)
            if row is None:
                row = self.tensor(tensor, parameter=parameter)
                _remember(key, self.body.tensors[row])
            found = self._fakes[key] = self._value_of_tensor(row)
        return found

    def _tensor_value(self, tensor: torch.Tensor, parameter: bool) -> int:
        return self._value_of_tensor(self.tensor(tensor, parameter=parameter))

    def _value_of_tensor(self, row: int) -> int:
        """Index of the value that is a described tensor."""
        found = self._values.get(row)
        if found is None:
            found = self._values[row] = self.add_value(pb.ValueDescription(tensor=row))
        return found

    def lazy_value(self, value: LazyValue) -> int:
        """Index of a description that another message holds."""
        return self.transfer(value.tables).value(value.index)

    def transfer(self, source: ValueTables) -> Transfer:
        """The translation from another message's indices into this one's."""
        found = self._transfers.get(id(source))
        if found is None:
            found = self._transfers[id(source)] = Transfer(source, self)
        return found


def _remember(key: tuple[Any, ...], row: pb.TensorDescription) -> None:
    """Keep a static description for later graphs; of which device it is they say themselves."""
    device, row.device = row.device, 0
    row_cache.TENSORS.put(key, row.SerializeToString())
    row.device = device


def _refuse(tensor: torch.Tensor) -> UnsupportedGraphError:
    """The error for a tensor that the format cannot describe."""
    if type(tensor) not in _CLASSES:
        return UnsupportedGraphError(
            f"tensors of class {type(tensor).__name__} are not supported",
            remedy="decompose tensor subclasses before sending the graph (AOTAutograd does)",
        )
    layout = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")
    return UnsupportedGraphError(
        f"a tensor of dtype {tensor.dtype} and {layout} layout is not supported by the format",
        remedy="use dense tensors of plain dtypes, or sparse ones without dense parts or blocks",
    )


def _is_contiguous_symbolic(tensor: torch.Tensor) -> bool:
    """Whether symbolic strides are, as expressions, the products of the sizes behind them."""
    expected: Any = 1
    for size, stride in zip(reversed(tensor.shape), reversed(tensor.stride()), strict=True):
        if _expression(stride) != expected:
            return False
        expected = expected * _expression(size)
    return True


def _expression(size: Any) -> Any:
    return size if type(size) is int else size.node.expr
