"""Determines whether a graph writes to its inputs, by running it on fake tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def mutates_inputs(module: GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether a call of a graph with these inputs would modify one of them.

    Args:
        module: The graph; it is not run on real values.
        inputs: Real tensors and numbers.

    Returns:
        True also if that is unknown.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    fakes = [
        mode.from_tensor(v, static_shapes=True) if isinstance(v, torch.Tensor) else v
        for v in inputs
    ]
    watch = _Writes(fakes)
    try:
        with mode, watch:
            module(*fakes)
    except Exception:  # noqa: BLE001 - operators without a fake, and whatever else
        return True
    return watch.seen


class _Writes(TorchDispatchMode):
    """Detects operators that modify the memory of some tensors."""

    def __init__(self, tensors: Sequence[Any]) -> None:
        super().__init__()
        self._watched = {_memory(t) for t in tensors if isinstance(t, torch.Tensor)}
        self.seen = False

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Check what an operator may write to, then run it."""
        given = dict(kwargs or {})
        written: list[Any] = []
        for number, argument in enumerate(func._schema.arguments):  # noqa: SLF001 - its only reader
            # Batch norms write to their running statistics, although their old schemas do not say
            # so.
            if (argument.alias_info is not None and argument.alias_info.is_write) or (
                argument.name.startswith("running_")
            ):
                written += args[number : number + 1] or [given.get(argument.name)]
        for value in tree_leaves(written):
            if isinstance(value, torch.Tensor) and _memory(value) in self._watched:
                self.seen = True
        return func(*args, **given)


def _memory(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - storages have no other identity
