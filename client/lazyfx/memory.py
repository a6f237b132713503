"""Encoded graphs remembered with the modules they came from.

Encoding costs milliseconds, a lookup on the server a fraction of one, so a module that
has not changed must not be encoded again. Whether it has changed is read off the module
itself: fx replaces a node's argument tuples whenever they change, so that comparing the
identity of a node's parts is enough, and needs no hook in torch.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from operator import attrgetter, is_

import torch
from torch.fx import GraphModule

from lazyfx import wire

_PARTS = attrgetter("name", "op", "target", "_args", "_kwargs")


@dataclass(frozen=True, slots=True)
class Remembered:
    """An encoded graph, and what its module looked like when it was encoded.

    Attributes:
        encoded: The graph.
        objects: Everything that the encoder read and that is replaced when it changes.
            The objects themselves are kept, not their ids: an id may be given out again.
        facts: What can change in place, as values.
    """

    encoded: wire.EncodedGraph
    objects: list[object]
    facts: list[object]

    def is_current(self, module: GraphModule) -> bool:
        """Whether `module` still looks as it did when it was encoded.

        Doubt counts as change: then the module is encoded again, and its digest decides.
        """
        objects = list(_objects(module))
        return (
            len(objects) == len(self.objects)
            and all(map(is_, objects, self.objects))
            and list(_facts(module)) == self.facts
        )


class Memory:
    """Encodes modules, each only when it has changed."""

    def __init__(self) -> None:
        self._modules: weakref.WeakKeyDictionary[GraphModule, Remembered] = (
            weakref.WeakKeyDictionary()
        )

    def recall(self, module: GraphModule) -> Remembered | None:
        """What was encoded last for this module, changed or not."""
        return self._modules.get(module)

    def encode(self, module: GraphModule) -> Remembered:
        """Encode a module and remember the result.

        Raises:
            UnsupportedGraphError: Something in the graph cannot go on the wire.
        """
        objects, facts = list(_objects(module)), list(_facts(module))
        remembered = Remembered(wire.encode(module), objects, facts)
        self._modules[module] = remembered
        return remembered


def _objects(module: GraphModule) -> Iterator[object]:
    owners = list(module.modules())
    graphs = [owner.graph for owner in owners if isinstance(owner, GraphModule)]
    nodes = list(chain.from_iterable(graph.nodes for graph in graphs))
    metas = [node.meta for node in nodes]
    return chain(
        owners,
        chain.from_iterable(map(_PARTS, nodes)),
        [meta.get("val") for meta in metas],
        [meta.get("example_value") for meta in metas],
        chain.from_iterable(owner.__dict__.values() for owner in owners),
        chain.from_iterable(owner._parameters.values() for owner in owners),  # noqa: SLF001
        chain.from_iterable(owner._buffers.values() for owner in owners),  # noqa: SLF001
    )


def _facts(module: GraphModule) -> Iterator[object]:
    for owner in module.modules():
        for tensor in chain(owner._parameters.values(), owner._buffers.values()):  # noqa: SLF001
            if tensor is not None:
                yield from _description(tensor)
        for value in owner.__dict__.values():
            if isinstance(value, torch.Tensor):
                # The values of a plain tensor attribute are part of the computation.
                yield from _description(value)
                yield value._version  # noqa: SLF001 - torch's own change counter


def _description(tensor: torch.Tensor) -> tuple[object, ...]:
    return (tensor.shape, tensor.stride(), tensor.dtype, tensor.device, tensor.requires_grad)
