"""Caches encoded graphs on the graphs they came from.

Encoding takes milliseconds, a lookup on the server a fraction of one, so an unchanged module must
not be encoded again. Changes are detected from the module itself: fx replaces a node's argument
tuples whenever they change, so comparing the identity of a node's parts is enough, without hooks in
torch.

The comparison runs during a request and must not take longer. Its cost is memory accesses and
object allocations, so it visits everything only once.
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

# The cached encoding is an attribute of the graph, so it dies with the graph. In a separate table,
# even a weak one, it would keep the graph alive, because it refers to every part of it.
_ATTRIBUTE = "_lazyfx_remembered"

_PARTS = attrgetter("name", "op", "target", "_args", "_kwargs")
_NODES = attrgetter("nodes")
_GRAPH = attrgetter("_graph", "_graph._codegen", "_graph._codegen._body_transformer")
_TABLES = attrgetter("_modules", "_parameters", "_buffers")
_DESCRIPTION = attrgetter("shape", "dtype", "requires_grad")

# The keys under which the encoder looks for a node's metadata, in this order.
_VALUE_KEYS = ("val", "example_value", wire.META_KEY)

# Attributes that every module has. Of these, only the tables and the mode are part of a graph, and,
# for leaf modules, the absence of hooks.
_INTERNALS = frozenset(vars(torch.nn.Module()))
# A module without these, such as a ScriptModule, stores them where changes cannot be detected.
_ORDINARY = {"training", "_modules", "_parameters", "_buffers"}

# Constants up to this size are compared by value: some writes do not increase torch's version
# counter.
_SMALL_BYTES = 4096
_FROZEN = (
    *(bool, int, float, complex, str, bytes, type(None), type(...), FunctionType),
    *(BuiltinFunctionType, torch.dtype, torch.device, torch.layout, torch.memory_format, TreeSpec),
)


class CachedEncoding:
    """An encoded graph, and a snapshot of its module at that time.

    It keeps the objects themselves, not their ids, which may be reused.

    Args:
        module: The module of the graph.
        encoded: The graph.

    Attributes:
        encoded: The graph.
        stable: Whether every change of the module can be detected. If not, it has to be encoded
            each time.
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
        # Dynamo's nodes have no "val"; getting one is a change. Few nodes lack more than one key.
        lacking = list(map(_lacking, nodes))
        self._nodes = [
            (*_PARTS(node), *_value(node), keys[0] if keys else None)
            for node, keys in zip(nodes, lacking, strict=True)
        ]
        self._lacking_more = [
            (node, key) for node, keys in zip(nodes, lacking, strict=True) for key in keys[1:]
        ]
        registered = set(map(id, self._items))
        loose = set(map(id, self._extra_values))
        parts = list(chain.from_iterable(encoded.attributes))
        # Each tensor once: tied ones are in several places.
        by_id = {id(part): part for part in parts if isinstance(part, torch.Tensor)}
        self._tensors = list(by_id.values())
        # The values of a tensor that is not a parameter or buffer are part of the graph.
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
        # A copy or a pickle of the graph is a different graph without a cached encoding.
        return (type(None), ())

    def belongs_to(self, module: GraphModule) -> bool:
        """Whether this was encoded from `module`, even if that has changed since."""
        return self._owners[0] is module

    def is_unchanged(self) -> bool:
        """Whether the module is unchanged since it was encoded.

        If in doubt, it counts as changed: the module is encoded again, and its digest decides.
        """
        try:
            return self._same_modules() and self._same_nodes() and self._same_tensors()
        except (KeyError, ValueError):  # an attribute is missing; more or fewer nodes
            return False

    def _same_modules(self) -> bool:
        # These are the cached owners: if their tables still contain the same modules under the same
        # names, the tree is the same.
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
        # A plain loop: its attribute access is faster than a getter called by `map`. It visits each
        # node only once, because most of the time is spent waiting for memory.
        for node, look in zip(_nodes(self._graphs), self._nodes, strict=True):
            name, op, target, args, kwargs, key, value, lacking = look
            meta = node.meta
            if (
                node._args is not args  # noqa: SLF001 - without the property around it
                or node._kwargs is not kwargs  # noqa: SLF001
                or node.target is not target
                or node.op is not op
                or node.name is not name
                or (key is not None and meta[key] is not value)
                or (lacking is not None and lacking in meta)
            ):
                return False
        return not any(key in node.meta for node, key in self._lacking_more)

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
    """The last encoding of this module, even if it has changed since."""
    found = getattr(module.graph, _ATTRIBUTE, None)
    return found if isinstance(found, CachedEncoding) and found.belongs_to(module) else None


def encode(module: GraphModule) -> wire.EncodedGraph:
    """Encode a module and cache the result.

    Raises:
        UnsupportedGraphError: Something in the graph cannot be encoded.
    """
    encoded = wire.encode(module)
    remembered = None
    if all(vars(owner).keys() >= _ORDINARY for owner in module.modules()):
        remembered = CachedEncoding(module, encoded)
    setattr(module.graph, _ATTRIBUTE, remembered if remembered and remembered.stable else None)
    return encoded


def _same(now: Iterable[object], before: Sequence[object]) -> bool:
    """Whether the objects are identical; lengths are compared elsewhere."""
    return all(map(is_, now, before))


def _snapshot(owner: torch.nn.Module) -> tuple[object, ...]:
    """The compared parts of a module: class, number of attributes, mode, tables."""
    return (type(owner), len(vars(owner)), owner.training, *_TABLES(owner))


def _graphs(owners: Iterable[GraphModule]) -> list[Any]:
    """Graphs, each followed by its calling convention and source transformations."""
    return list(chain.from_iterable(map(_GRAPH, owners)))


def _nodes(graphs: Sequence[Graph]) -> Iterator[Node]:
    return chain.from_iterable(map(_NODES, graphs[::3]))


def _value(node: Node) -> tuple[str | None, object]:
    """The key under which the encoder finds a node's metadata, and the metadata."""
    for key in _VALUE_KEYS:
        if key in node.meta:
            return key, node.meta[key]
    return None, None


def _lacking(node: Node) -> tuple[str, ...]:
    """The keys under which the encoder would look first, and finds nothing in this node."""
    found, _ = _value(node)
    return _VALUE_KEYS if found is None else _VALUE_KEYS[: _VALUE_KEYS.index(found)]


def _called(encoded: wire.EncodedGraph) -> list[torch.nn.Module]:
    """The leaf modules, such as a Linear, and their parts."""
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
    """Whether a part of a graph is immutable, or its changes are detected."""
    if isinstance(value, (tuple, torch.Size)):
        return all(map(_is_frozen, value))
    return isinstance(value, (*_FROZEN, torch.Tensor, torch.nn.Module))


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether a tensor has strides and a version counter."""
    return tensor.layout is torch.strided and not tensor.is_inference()


def _has_address(tensor: torch.Tensor) -> bool:
    real = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return real and not tensor.is_meta and tensor.data_ptr() != 0


def _addresses(tensors: Sequence[torch.Tensor]) -> list[object]:
    """The addresses of tensors; an address implies a device.

    If no tensor moves, the same tensors share memory as before: to share memory with another one, a
    tensor has to move. This is cheaper than reading storages.
    """
    return list(map(torch.Tensor.data_ptr, tensors))


def _storages(tensors: Sequence[torch.Tensor]) -> list[object]:
    """The same for tensors without elements."""
    return [(t.device, t.untyped_storage()._cdata) for t in tensors]  # noqa: SLF001 - no public one


def _content(constant: torch.Tensor) -> tuple[int, bytes | None]:
    """A key that changes when the values of a constant change."""
    small = constant.is_cpu and constant.nbytes <= _SMALL_BYTES
    return constant._version, bytes(wire.tensor_bytes(constant)) if small else None  # noqa: SLF001
