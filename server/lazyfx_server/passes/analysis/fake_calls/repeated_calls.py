"""Remembers what calls on fake tensors return: the layers of a model repeat each other."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx import Graph, Node

from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.fake_calls.torch_fake_tensors import (
    Facts,
    facts_of,
    fresh,
    is_plain,
)

# Literals that are equal, and of one type, are the same to every operator.
_LITERALS = (bool, int, float, str, torch.dtype, torch.device, torch.layout, torch.memory_format)


class RepeatedCalls:
    """The results of calls on fake tensors, by target and by what is known of the operands.

    Only of calls whose result depends on nothing else: no writes, no random numbers, no memory
    shared with operands, plain tensors of known sizes. torch has a cache of its own for operators,
    which takes a third of a millisecond, and has no entries for functions of several operators.

    Args:
        graph: The graph whose calls are computed.
        mode: The mode of the fake tensors.
    """

    def __init__(self, graph: Graph, mode: FakeTensorMode) -> None:
        self._mode = mode
        self._results: dict[Hashable, Facts] = {}
        # A result made anew is no function of the operands to autograd, which such calls ask for.
        # Each node: of one target, some calls may change the state and others not.
        self._has_switches = any(effects_of(node).state for node in graph.nodes)

    def key(self, node: Node, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Hashable | None:
        """What the result of a call depends on; None if that is not known.

        A call that may change how later calls run (autocast, grad mode) makes it forget all.
        """
        effects = effects_of(node)
        if effects.state:
            self._results.clear()
        if node.op not in {"call_function", "call_method"} or effects.aliases or not effects.pure:
            return None
        if isinstance(node.target, HigherOrderOperator):
            return None
        try:
            return node.op, node.target, self._facts(args), self._facts(kwargs)
        except _UnknownError:
            return None

    def find(self, key: Hashable) -> FakeTensor | None:
        """A new tensor like the one that an equal call returned."""
        found = self._results.get(key)
        return None if found is None else fresh(found, self._mode)

    def add(self, key: Hashable, value: object) -> None:
        """Remembers what a call returned, if it is one plain tensor that fills its memory."""
        if is_plain(value, self._mode):
            assert isinstance(value, FakeTensor)
            dense = torch._prims_common.is_non_overlapping_and_dense_or_false(value)  # noqa: SLF001 - no public way to ask
            if dense and value.storage_offset() == 0:
                self._results[key] = facts_of(value)

    def _facts(self, value: Any) -> Hashable:
        if isinstance(value, torch.Tensor):
            if not is_plain(value, self._mode) or (value.requires_grad and self._has_switches):
                raise _UnknownError
            place = value.storage_offset(), value.device, value.dtype, value.requires_grad
            return torch.Tensor, tuple(value.shape), value.stride(), *place
        if isinstance(value, list | tuple):
            return type(value), *map(self._facts, value)
        if isinstance(value, Mapping):
            return dict, *((name, self._facts(item)) for name, item in value.items())
        if value is None or type(value) in _LITERALS:
            return type(value), value
        raise _UnknownError


class _UnknownError(Exception):
    """An operand may be anything."""
