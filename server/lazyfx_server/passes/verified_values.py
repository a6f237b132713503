"""Concrete values of a graph's attributes for verification, and writable copies of them.

Attributes that share memory in the caller's process share memory here too, so that a write to one
of them is seen through the others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lazyfx.shared.wire.format import DTYPE_OBJECTS
from lazyfx.shared.wire.values.descriptions import fake_tensor
from lazyfx.shared.wire.values.tensors import contiguous_strides, stand_in_of, storage_extent
from lazyfx.v1 import graph_pb2
from lazyfx_server.passes.analysis.attribute_memory import description_of, memory_of
from lazyfx_server.passes.errors import PassError

Random = Callable[[Tensor], Tensor]
"""Makes random values like those of a tensor, perhaps a fake one."""


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in memory that it shares.

    Attributes:
        memory: All of the memory, as bytes.
    """

    memory: Tensor
    dtype: torch.dtype
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int

    def view(self, memory: Tensor) -> Tensor:
        """The tensor in this memory, or in a copy of it."""
        typed = memory if self.dtype is torch.uint8 else memory.view(self.dtype)
        # With a version counter of its own: the caller's tensors may have been made like that.
        return typed.as_strided(self.shape, self.strides, self.offset).data


class Values:
    """Concrete values of attributes: their own if known, else random ones.

    Args:
        max_bytes: Bound on memory that attributes share.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._made: dict[int, tuple[Tensor, Tensor]] = {}
        self._places: dict[int, _Place] = {}

    def add(self, module: nn.Module, random: Random) -> None:
        """Makes values for tensors without values, and for those that share memory.

        Raises:
            PassError: Memory that attributes share is too large (kind "limit").
        """
        sharing: defaultdict[Hashable, dict[int, Tensor]] = defaultdict(dict)
        for tensor in _tensors(module):
            sharing[memory_of(tensor)][id(tensor)] = tensor
        for group in sharing.values():
            tensors = list(group.values())
            rows = [description_of(tensor) for tensor in tensors]
            known = [row for row in rows if row is not None and _is_plain(row)]
            if len(tensors) > 1 and len(known) == len(tensors):
                self._add_sharing(tensors, known, random)
                continue
            for tensor in tensors:
                if tensor.is_meta:
                    self._keep(tensor, random(_like(tensor)).requires_grad_(tensor.requires_grad))

    def _add_sharing(
        self, tensors: list[Tensor], rows: list[graph_pb2.TensorDescription], random: Random
    ) -> None:
        size = max(_extent(row) * DTYPE_OBJECTS[row.dtype].itemsize for row in rows)
        if size > self._max_bytes:
            raise PassError(
                f"verify would create {size} bytes of tensors; the limit is {self._max_bytes}; "
                "leave verify out",
                kind="limit",
                field="verify",
            )
        # A whole number of elements of any dtype.
        memory = torch.zeros(-(-size // 16) * 16, dtype=torch.uint8)
        # Known values last, over random ones in the same place.
        for tensor, row in sorted(
            zip(tensors, rows, strict=True), key=lambda pair: not pair[0].is_meta
        ):
            shape = tuple(row.shape)
            strides = tuple(row.stride) or contiguous_strides(shape)
            place = _Place(memory, DTYPE_OBJECTS[row.dtype], shape, strides, row.storage_offset)
            value = place.view(memory)
            value.copy_(random(_like(tensor)) if tensor.is_meta else tensor.detach())
            self._keep(tensor, value.requires_grad_(tensor.requires_grad))
            self._places[id(value)] = place

    def _keep(self, tensor: Tensor, value: Tensor) -> None:
        # Keep the tensor so that its id is not reused.
        self._made[id(tensor)] = (tensor, value)

    def all(self) -> Sequence[Tensor]:
        """All generated values."""
        return [value for _, value in self._made.values()]

    def of(self, tensor: Tensor) -> Tensor:
        """The concrete value of an attribute."""
        found = self._made.get(id(tensor))
        return tensor if found is None else found[1]

    def place(self, value: Tensor) -> _Place | None:
        """Where a value is in memory that it shares with others."""
        return self._places.get(id(value))


class Copies:
    """One writable copy of each tensor of a run, derived from a leaf.

    Args:
        values: Which tensors share memory: their copies do too.
    """

    def __init__(self, values: Values) -> None:
        self._values = values
        self._made: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        self._memories: dict[int, Tensor] = {}

    def of(self, tensor: Tensor) -> Tensor:
        """The copy of a tensor in this run."""
        if id(tensor) not in self._made:
            leaf = tensor.detach().clone().requires_grad_(tensor.requires_grad)
            self._made[id(tensor)] = (tensor, leaf, self._copy(tensor, leaf))
        return self._made[id(tensor)][2]

    def _copy(self, tensor: Tensor, leaf: Tensor) -> Tensor:
        place = self._values.place(tensor)
        if place is None:
            # Not the leaf: a tensor that requires grad can be written only if it is not a leaf.
            return leaf.clone() if leaf.requires_grad else leaf
        memory = self._memories.setdefault(id(place.memory), place.memory.clone())
        view = place.view(memory)
        # The same values, which depend on the leaf from now on.
        return view.copy_(leaf) if leaf.requires_grad else view

    def leaves(self, tensors: Iterable[Tensor]) -> list[Tensor]:
        """The leaves of the copies of these tensors, if any have gradients."""
        known = (self._made[id(t)][1] for t in tensors if id(t) in self._made)
        return [leaf for leaf in known if leaf.requires_grad]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for part in module.modules():
        yield from (value for value in vars(part).values() if isinstance(value, Tensor))
        yield from part.parameters(recurse=False)
        yield from part.buffers(recurse=False)


def _like(tensor: Tensor) -> Tensor:
    """A tensor with the sizes and the device that an attribute has in the caller's process."""
    stand_in = stand_in_of(tensor)
    if stand_in is None:
        return tensor
    row = stand_in.tables.body.tensors[stand_in.attribute.tensor]
    return fake_tensor(stand_in.tables, row, FakeTensorMode())


def _is_plain(row: graph_pb2.TensorDescription) -> bool:
    symbolic = row.symbolic_shape or row.symbolic_stride or row.symbolic_storage_offset
    return not (symbolic or row.is_conjugate or row.is_negative or row.layout) and (
        row.dtype in DTYPE_OBJECTS
    )


def _extent(row: graph_pb2.TensorDescription) -> int:
    shape = tuple(row.shape)
    return storage_extent(shape, tuple(row.stride) or contiguous_strides(shape), row.storage_offset)
