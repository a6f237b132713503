"""Pickles tensors: supports every dtype, and keeps shared memory shared.

torch's own pickling writes the storage of each tensor separately, so views of one buffer load as
copies, and writes dtypes that it cannot load (float8, uint16, int4, ...).
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from lazyfx.shared.formats.pickling import torch_rebuild
from lazyfx.shared.formats.pickling.deferred_calls import DeferredCall
from lazyfx.shared.wire.values.tensors import storage_key


class TensorPickler(pickle.Pickler):
    """A pickler with its own representation of plain tensors and parameters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Keep these alive: pickle memoizes them by identity.
        self._storages: dict[int, object] = {}
        self._data: list[object] = []

    def reducer_override(self, obj: Any) -> Any:
        """How to pickle an object; NotImplemented leaves it to pickle."""
        if type(obj) is nn.Parameter and _is_plain(obj):
            data = DeferredCall(*self._rebuilt(obj))
            self._data.append(data)
            return (torch_rebuild.rebuild_parameter, (data, obj.requires_grad, OrderedDict()))
        if type(obj) is torch.Tensor and _is_plain(obj) and not obj.requires_grad:
            return self._rebuilt(obj)
        return NotImplemented

    def _rebuilt(self, tensor: torch.Tensor) -> tuple[Any, tuple[Any, ...]]:
        key = storage_key(tensor)
        if key not in self._storages:
            self._storages[key] = torch_rebuild.bytes_of(tensor.untyped_storage())
        place = (tensor.storage_offset(), tuple(tensor.size()), tensor.stride())
        arguments: tuple[Any, ...] = (
            self._storages[key],
            *place,
            False,
            OrderedDict(),
            tensor.dtype,
        )
        metadata = torch_rebuild.metadata_of(tensor)
        return torch_rebuild.rebuild_tensor, (*arguments, metadata) if metadata else arguments


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not (
        tensor.is_meta or tensor.is_quantized or tensor.is_nested
    )
