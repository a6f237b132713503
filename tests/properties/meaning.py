"""What a graph computes, written down slowly and plainly: the oracle of the digest.

Two graphs are the same computation if and only if `meaning` gives equal tuples. Nothing
here knows the wire format: it is Python's view of a graph, with devices, symbols and
memories numbered where they are first met.
"""

from __future__ import annotations

import math
import struct
from typing import Any

import torch
from material import MODULES, TENSORS, Material, describe_symbol
from torch.fx import GraphModule, Node

_MEMORY = {id(tensor): memory for memory, tensor in TENSORS}
_MODULE = {id(module): name for name, module in MODULES}
# Parts that modules of the material share, by name of the module.
_SHARED = {"linear": ("linear.weight", "linear.bias"), "tied": ("linear.weight", "tied.bias")}


def meaning(module: GraphModule, material: Material) -> tuple[Any, ...]:
    """What a graph computes."""
    return _Oracle(material).graph(module)


class _Oracle:
    def __init__(self, material: Material) -> None:
        self._numbers = {id(number): (label, which) for number, label, which in material.numbers}
        self._symbols_of: dict[Any, int] = {}
        for number, label, which in material.numbers:
            if label == "s":
                self._symbols_of[number.node.expr] = which
        self._spells = False
        self._first: dict[tuple[Any, ...], int] = {}

    def _number(self, *what: Any) -> int:
        """The place at which something of a kind is first met among its kind."""
        kind = what[0]
        met = sum(1 for seen in self._first if seen[0] == kind)
        return self._first.setdefault(what, met)

    def graph(self, module: GraphModule) -> tuple[Any, ...]:
        places: dict[Node, int] = {}
        paths: dict[tuple[str, str], int] = {}
        rows = []
        for place, node in enumerate(module.graph.nodes):
            if node.op in ("get_attr", "call_module"):
                first = paths.setdefault((node.op, str(node.target)), len(paths))
                target: Any = (first, self._attribute(getattr(module, str(node.target))))
            elif node.op == "placeholder":
                target = str(node.target).count("*")
            else:
                target = node.target if isinstance(node.target, str) else _name(node.target)
            sees_order = node.op != "call_function" or not _is_torch(node.target)
            self._spells = node.op == "call_method" or not sees_order
            rows.append(
                (
                    node.op,
                    target,
                    tuple(self._argument(a, places, sees_order) for a in node.args),
                    tuple(
                        (name, self._argument(value, places, sees_order))
                        for name, value in sorted(node.kwargs.items())
                    ),
                    self._value(node.meta["val"], node.op) if "val" in node.meta else "no value",
                )
            )
            places[node] = place
        return tuple(rows)

    def _attribute(self, value: Any) -> Any:
        if isinstance(value, GraphModule):
            return ("graph", self.graph(value))
        if isinstance(value, torch.nn.Module):
            name = _MODULE[id(value)]
            kind = "linear" if name in ("linear", "tied", "another") else name
            parts = [
                self._number("memory", part)
                for part in _SHARED.get(name, (f"{name}.{n}" for n, _ in _state(value)))
            ]
            return ("module", kind, value.training, tuple(parts))
        role = "parameter" if isinstance(value, torch.nn.Parameter) else value_bytes(value)
        memory = self._number("memory", _MEMORY[id(value)])
        return ("tensor", self._tensor(value), role, memory)

    def _tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        dense = tensor.layout is torch.strided
        return (
            str(tensor.dtype),
            tuple(self._size(size) for size in tensor.shape),
            tuple(self._size(step) for step in tensor.stride()) if dense else (),
            self._size(tensor.storage_offset()) if dense else 0,
            self._device(tensor.device),
            str(tensor.layout),
            *(tensor.requires_grad, tensor.is_conj(), tensor.is_neg()),
        )

    def _size(self, size: Any) -> Any:
        if type(size) is int:
            return size
        expr = size.node.expr
        # Sizes and strides here are a symbol, or three times one.
        (symbol,) = expr.free_symbols
        return ("size", str(expr).replace(str(symbol), "s"), self._symbol(symbol))

    def _symbol(self, symbol: Any) -> tuple[Any, ...]:
        which = self._symbols_of[symbol]
        return (self._number("symbol", which), describe_symbol(which))

    def _device(self, device: torch.device) -> tuple[Any, ...]:
        if device.index is None:
            return (device.type, None)
        return (device.type, self._number(device.type, device.index))

    def _value(self, value: Any, op: str) -> Any:
        if isinstance(value, torch.Tensor):
            parameter = op == "placeholder" and isinstance(value, torch.nn.Parameter)
            return ("tensor", self._tensor(value), parameter)
        if isinstance(value, (list, tuple)):
            return (type(value).__name__, tuple(self._value(item, "") for item in value))
        return self._scalar(value)

    def _scalar(self, value: Any) -> Any:
        if isinstance(value, float):
            return ("float", "nan" if math.isnan(value) else struct.pack("<d", value))
        return (type(value).__name__, value)

    def _argument(self, value: Any, places: dict[Node, int], sees_order: bool) -> Any:
        if isinstance(value, Node):
            return ("node", places[value])
        if id(value) in self._numbers:
            label, which = self._numbers[id(value)]
            return (type(value).__name__, label, self._number("symbol", which),
                    describe_symbol(which))  # fmt: skip
        if isinstance(value, torch.Size):
            return ("size", tuple(value))
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return (kind, tuple(self._argument(item, places, sees_order) for item in value))
        if isinstance(value, dict):
            entries = [
                (type(key).__name__, key, self._argument(item, places, sees_order))
                for key, item in value.items()
            ]
            return ("dict", tuple(entries if sees_order else sorted(entries, key=repr)))
        if isinstance(value, slice):
            parts = (value.start, value.stop, value.step)
            return ("slice", tuple(self._argument(part, places, sees_order) for part in parts))
        if isinstance(value, torch.device):
            return ("device", self._device(value))
        if self._spells and isinstance(value, str) and value.count(":") == 1:
            return ("text", self._device(torch.device(value)))
        if isinstance(value, complex):
            return ("complex", self._scalar(value.real), self._scalar(value.imag))
        if callable(value) and not isinstance(value, torch.dtype):
            return ("function", _name(value))
        if isinstance(value, (bool, int, float, str, type(None))):
            return self._scalar(value)
        return (type(value).__name__, str(value))


def _name(function: Any) -> str:
    return f"{type(function).__name__} {function}"


def _is_torch(function: Any) -> bool:
    if isinstance(function, torch._ops.HigherOrderOperator):
        return False
    return "torch" in f"{type(function).__module__} {getattr(function, '__module__', None)}" or (
        function in (torch.add, torch.relu, torch.cat)
    )


def _state(module: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def value_bytes(tensor: torch.Tensor) -> bytes:
    """The elements of a tensor as it shows them."""
    shown = tensor.detach().resolve_conj().resolve_neg().contiguous().reshape(-1)
    return bytes(shown.view(torch.uint8).numpy())
