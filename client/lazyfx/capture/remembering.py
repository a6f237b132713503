"""Encoded graphs remembered with the graphs they came from.

Encoding costs milliseconds, a lookup on the server a fraction of one, so a module that
has not changed must not be encoded again. Whether it has changed is read off the module
itself: fx replaces a node's argument tuples whenever they change, so that comparing the
identity of a node's parts is enough, and needs no hook in torch.

The comparison runs while a request is under way and must take no longer than that. What
it costs is memory that it touches and objects that it makes: it goes over each thing once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from operator import attrgetter, eq, getitem, is_
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import TreeSpec

from lazyfx.capture.tensor_guards import tensor_check
from lazyfx.shared import wire
from lazyfx.shared.wire.calling_convention import HOOKS

# What was remembered is an attribute of the graph and so dies with it. In a table of ours,
# even a weak one, it would keep the graph alive: it refers to every part of it.
_ATTRIBUTE = "_lazyfx_remembered"

_PARTS = attrgetter("name", "op", "target", "_args", "_kwargs")
_NODES = attrgetter("nodes")
_GRAPH = attrgetter("_graph", "_graph._codegen", "_graph._codegen._body_transformer")
_TABLES = attrgetter("_modules", "_parameters", "_buffers")
_DESCRIPTION = attrgetter("shape", "dtype", "requires_grad")

# Where the encoder looks for what a node's value looks like, in this order.
_VALUE_KEYS = ("val", "example_value", wire.META_KEY)

# What every module has. Of this only the tables and the mode are part of a graph, and for
# a module that is called as one, that it has no hooks.
_INTERNALS = frozenset(vars(torch.nn.Module()))
# A module without these, such as a ScriptModule, keeps them where changes are not seen.
_ORDINARY = {"training", "_modules", "_parameters", "_buffers"}

# Constants up to this size are compared by value: some writes leave no trace in torch's
# change counter.
_SMALL_BYTES = 4096
_FROZEN = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), FunctionType),
    *(BuiltinFunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format, TreeSpec),
)


class CachedEncoding:
    """An encoded graph, and what its module looked like when it was encoded.

    The objects themselves are kept, not their ids: an id may be given out again.

    Args:
        module: Where the graph came from.
        encoded: The graph.

    Attributes:
        encoded: The graph.
        stable: Whether every change of the module can be seen. If not, it has to be
            encoded each time.
    """

    def __init__(self, module: GraphModule, encoded: wire.EncodedGraph) -> None:
        self.encoded = encoded
        owners = list(module.modules())
        called = _called(encoded)
        self._owners = owners
        self._snapshots = [_snapshot(owner) for owner in owners]
        tables = [table for owner in owners for table in _TABLES(owner)]
        self._empty = [table for table in tables if not table]
        self._full = [table for table in tables if table]
        self._counts = list(map(len, self._full))
        self._keys = list(chain.from_iterable(self._full))
        self._items = list(chain.from_iterable(map(dict.values, self._full)))
        self._graph_owners = [owner for owner in owners if isinstance(owner, GraphModule)]
        self._graphs = _graphs(self._graph_owners)
        extras = [(owner, name) for owner in owners for name in vars(owner).keys() - _INTERNALS]
        self._extra_owners = [owner for owner, _ in extras]
        self._extra_names = [name for _, name in extras]
        self._extra_values = [vars(owner)[name] for owner, name in extras]
        inner = [owner for owner in owners[1:] if isinstance(owner, GraphModule)]
        self._hooks = [vars(part)[name] for part in (*called, *inner) for name in HOOKS]
        nodes = list(_nodes(self._graphs))
        self._nodes = [(*_PARTS(node), *_value(node)) for node in nodes]
        # Dynamo's nodes have no "val". If they get one, that counts.
        self._without_val = [i for i, of in enumerate(self._nodes) if of[-2] != "val"]
        registered = set(map(id, self._items))
        loose = set(map(id, self._extra_values))
        parts = list(chain.from_iterable(encoded.attributes))
        # Once each: one that is tied is in several places.
        by_id = {id(part): part for part in parts if isinstance(part, torch.Tensor)}
        self._tensors = list(by_id.values())
        # A tensor that is not a parameter or buffer is part of the graph with its values.
        self._constants = [t for t in self._tensors if id(t) in loose or id(t) not in registered]
        self.stable = (
            set(map(id, parts)) <= registered | loose
            and all(map(_is_plain, self._tensors))
            and all(map(_is_frozen, chain(parts, _options(called))))
        )
        if self.stable:
            self._descriptions = list(map(_DESCRIPTION, self._tensors))
            self._strides = list(map(torch.Tensor.stride, self._tensors))
            self._same_looks = tensor_check(self._tensors)
            self._locate = _addresses if all(map(_has_address, self._tensors)) else _storages
            self._locations = self._locate(self._tensors)
            self._contents = list(map(_content, self._constants))

    def __reduce__(self) -> tuple[Any, ...]:
        # A copy or a pickle of the graph is another graph, of which nothing is known.
        return (type(None), ())

    def belongs_to(self, module: GraphModule) -> bool:
        """Whether this was encoded from `module`, changed since or not."""
        return self._owners[0] is module

    def is_unchanged(self) -> bool:
        """Whether the module still looks as it did when it was encoded.

        Doubt counts as change: then the module is encoded again, and its digest decides.
        """
        try:
            return self._same_modules() and self._same_nodes() and self._same_tensors()
        except KeyError:  # an attribute has gone
            return False

    def _same_modules(self) -> bool:
        # The owners are those remembered: that their tables still hold the same modules
        # under the same names says that they still make up the same tree.
        for owner, look in zip(self._owners, self._snapshots):  # noqa: B905 - of one length
            cls, size, mode, modules, parameters, buffers = look
            attributes = owner.__dict__
            if (
                type(owner) is not cls
                or len(attributes) != size
                or attributes["training"] is not mode
                or attributes["_modules"] is not modules
                or attributes["_parameters"] is not parameters
                or attributes["_buffers"] is not buffers
            ):
                return False
        full = self._full
        return (
            not any(self._empty)
            and list(map(len, full)) == self._counts
            and list(chain.from_iterable(full)) == self._keys
            and _same(chain.from_iterable(map(dict.values, full)), self._items)
            and _same(
                map(getitem, map(vars, self._extra_owners), self._extra_names), self._extra_values
            )
            and not any(self._hooks)
        )

    def _same_nodes(self) -> bool:
        if not _same(_graphs(self._graph_owners), self._graphs):
            return False
        nodes = list(_nodes(self._graphs))
        if len(nodes) != len(self._nodes):
            return False
        # A plain loop: its attribute access is faster than a getter called by `map`.
        for node, (name, op, target, args, kwargs, key, value) in zip(nodes, self._nodes):  # noqa: B905
            if (
                node._args is not args  # noqa: SLF001 - without the property around it
                or node._kwargs is not kwargs  # noqa: SLF001
                or node.target is not target
                or node.op is not op
                or node.name is not name
                or (key is not None and node.meta[key] is not value)
            ):
                return False
        return not any(_has_other_value(nodes[i], self._nodes[i][-2]) for i in self._without_val)

    def _same_tensors(self) -> bool:
        tensors = self._tensors
        looks_same = self._same_looks(*tensors) or (
            all(map(eq, map(_DESCRIPTION, tensors), self._descriptions))
            and all(map(eq, map(torch.Tensor.stride, tensors), self._strides))
        )
        return (
            looks_same
            and self._locate(tensors) == self._locations
            and list(map(_content, self._constants)) == self._contents
        )


def cached_encoding(module: GraphModule) -> CachedEncoding | None:
    """What was encoded last for this module, changed since or not."""
    found = getattr(module.graph, _ATTRIBUTE, None)
    return found if isinstance(found, CachedEncoding) and found.belongs_to(module) else None


def encode(module: GraphModule) -> wire.EncodedGraph:
    """Encode a module and remember the result.

    Raises:
        UnsupportedGraphError: Something in the graph cannot go on the wire.
    """
    encoded = wire.encode(module)
    remembered = None
    if all(vars(owner).keys() >= _ORDINARY for owner in module.modules()):
        remembered = CachedEncoding(module, encoded)
    setattr(module.graph, _ATTRIBUTE, remembered if remembered and remembered.stable else None)
    return encoded


def _same(now: Iterable[object], before: Sequence[object]) -> bool:
    """Whether as many objects as there were are the same; lengths are compared elsewhere."""
    return all(map(is_, now, before))


def _snapshot(owner: torch.nn.Module) -> tuple[object, ...]:
    """What is compared of a module itself: class, number of attributes, mode, tables."""
    return (type(owner), len(vars(owner)), owner.training, *_TABLES(owner))


def _graphs(owners: Iterable[GraphModule]) -> list[Any]:
    """Graphs, each followed by what says how it is called and how its source is changed."""
    return list(chain.from_iterable(map(_GRAPH, owners)))


def _nodes(graphs: Sequence[Graph]) -> Iterator[Node]:
    return chain.from_iterable(map(_NODES, graphs[::3]))


def _value(node: Node) -> tuple[str | None, object]:
    """Under which key the encoder finds what a node's value looks like, and that."""
    for key in _VALUE_KEYS:
        if key in node.meta:
            return key, node.meta[key]
    return None, None


def _has_other_value(node: Node, key: str | None) -> bool:
    """Whether the encoder would now find a value under another key."""
    before = _VALUE_KEYS[: _VALUE_KEYS.index(key)] if key else _VALUE_KEYS
    return any(each in node.meta for each in before)


def _called(encoded: wire.EncodedGraph) -> list[torch.nn.Module]:
    """The modules that are called as one, such as a Linear, and their parts."""
    return [
        part
        for value in chain.from_iterable(encoded.attributes)
        if isinstance(value, torch.nn.Module) and not isinstance(value, GraphModule)
        for part in value.modules()
    ]


def _options(called: Iterable[torch.nn.Module]) -> Iterator[object]:
    for part in called:
        for name, value in vars(part).items():
            if not name.startswith("_"):
                yield value


def _is_frozen(value: object) -> bool:
    """Whether a part of a graph can only be replaced, or has its changes looked for."""
    if isinstance(value, (tuple, torch.Size)):
        return all(map(_is_frozen, value))
    return isinstance(value, (*_FROZEN, torch.Tensor, torch.nn.Module))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has strides and a counter of its changes."""
    return tensor.layout is torch.strided and not tensor.is_inference()


def _has_address(tensor: torch.Tensor) -> bool:
    real = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return real and not tensor.is_meta and tensor.data_ptr() != 0


def _addresses(tensors: Sequence[torch.Tensor]) -> list[object]:
    """What says where tensors are: an address stands for one device.

    Tensors that stay where they are also go on sharing memory, or not: to share it with
    another one, a tensor has to move there. Cheaper than asking for its storage.
    """
    return list(map(torch.Tensor.data_ptr, tensors))


def _storages(tensors: Sequence[torch.Tensor]) -> list[object]:
    """The same for tensors without elements."""
    return [(t.device, t.untyped_storage()._cdata) for t in tensors]  # noqa: SLF001 - no public one


def _content(constant: torch.Tensor) -> tuple[int, bytes | None]:
    """What tells whether the values of a constant have changed."""
    small = constant.is_cpu and constant.nbytes <= _SMALL_BYTES
    return constant._version, bytes(wire.tensor_bytes(constant)) if small else None  # noqa: SLF001
