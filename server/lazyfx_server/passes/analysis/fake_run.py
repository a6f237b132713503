"""Runs a graph on fake tensors: shapes, dtypes and devices without kernels or generated code.

Nodes are called one by one, so the module is never called and no source is generated. Values that
cannot be computed fall back to what the capture recorded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch._ops import HigherOrderOperator
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils._pytree import tree_any, tree_flatten, tree_leaves, tree_map

from lazyfx.shared.wire.values.descriptions import describe, fake_tensor, materialize
from lazyfx.shared.wire.values.tensors import stand_in_of
from lazyfx_server.passes.analysis.evaluation import without_real_constants
from lazyfx_server.passes.analysis.fake_calls.repeated_calls import RepeatedCalls
from lazyfx_server.passes.analysis.large_numbers import check_numbers
from lazyfx_server.passes.analysis.output_counts import check_outputs
from lazyfx_server.passes.analysis.packed import check_not_packed
from lazyfx_server.passes.analysis.torch_device_guards import guard_absent_devices
from lazyfx_server.passes.analysis.walk import attribute_at
from lazyfx_server.passes.errors import PassError

T = TypeVar("T")


class Unknown:
    """The value of a node about which nothing is known."""


UNKNOWN = Unknown()

# Higher-order operators that call one body with the operands that follow it:
# name -> how many arguments lie between the body and its operands.
_WRAPPERS = {
    "wrap": 0,
    "tag_activation_checkpoint": 0,
    "wrap_activation_checkpoint": 0,
    "wrap_with_set_grad_enabled": 0,
    "wrap_with_autocast": 0,
    "invoke_subgraph": 1,
}


class FakeRun:
    """One walk over a module with fake tensors.

    Args:
        module: Its graph is walked. It is neither called nor changed.
        mode: The mode of the fake tensors; by default that of the graph's metadata, else a new one.
        enter_bodies: Compute the bodies of higher-order operators even if their results are known.
        repeat: Compute equal calls once; their results are tensors of their own.
    """

    def __init__(
        self,
        module: GraphModule,
        mode: FakeTensorMode | None = None,
        *,
        enter_bodies: bool = False,
        repeat: bool = False,
    ) -> None:
        self.module = module
        self._enter_bodies = enter_bodies
        self.mode = mode or _mode_of(module)
        self._repeated = RepeatedCalls(module.graph, self.mode) if repeat else None
        self._values: dict[Node, Any] = {}
        self._attributes: dict[str, Any] = {}

    def known(self, node: Node) -> Any:
        """A node's value as recorded by the capture or an earlier pass, else UNKNOWN."""
        with unset_fake_temporarily():
            value = materialize(node, self.mode)
            if value is None:
                value = node.meta.get("example_value")
            return UNKNOWN if value is None else self._adopt(value)

    def is_known(self, node: Node) -> bool:
        """Whether the capture or an earlier pass recorded a node's value."""
        if "val" in node.meta:
            return node.meta["val"] is not None
        return describe(node) is not None or node.meta.get("example_value") is not None

    def recall(self, node: Node) -> None:
        """Use a node's recorded value, unless it was computed."""
        if node in self._values:
            return
        if node.op == "get_attr":
            self.compute(node)
        else:
            self._values[node] = self.known(node)

    def attribute_value(self, node: Node) -> object:
        """The value that a get_attr node reads."""
        return attribute_at(self.module, str(node.target))

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within the block, compute on fake tensors; real kernels are refused."""
        guard_absent_devices()
        kept = self.mode.allow_fallback_kernels, self.mode.allow_non_fake_inputs
        self.mode.allow_fallback_kernels, self.mode.allow_non_fake_inputs = False, True
        try:
            with without_real_constants(), self.mode:
                yield
        finally:
            self.mode.allow_fallback_kernels, self.mode.allow_non_fake_inputs = kept

    def give(self, node: Node, value: Any) -> None:
        """Sets the value of an input."""
        self._values[node] = value

    def value(self, node: Node) -> Any:
        """The value of a node computed before, else UNKNOWN."""
        return self._values.get(node, UNKNOWN)

    def compute(self, node: Node) -> Any:
        """Computes a node from its operands; call it inside `active`, in graph order.

        Returns:
            Fake tensors, numbers and containers of them, or UNKNOWN.
        """
        if node not in self._values:
            self._values[node] = self._compute(node)
        return self._values[node]

    def output(self) -> Any:
        """Computes every node and returns the value of the output."""
        for node in self.module.graph.nodes:
            if node.op == "output":
                if any(self.value(operand) is UNKNOWN for operand in node.all_input_nodes):
                    return UNKNOWN
                return torch.fx.node.map_arg(node.args[0], self.value)
            self.compute(node)
        return UNKNOWN

    def _compute(self, node: Node) -> Any:
        if node.op == "placeholder":
            return self.known(node)
        if node.op == "get_attr":
            return self._attribute(node)
        if any(self.value(operand) is UNKNOWN for operand in node.all_input_nodes):
            return self.known(node)
        args = torch.fx.node.map_arg(node.args, self.value)
        kwargs = torch.fx.node.map_arg(node.kwargs, self.value)
        key = None if self._repeated is None else self._repeated.key(node, args, kwargs)
        if self._repeated is not None and key is not None:
            repeated = self._repeated.find(key)
            if repeated is not None:
                return repeated
        try:
            value = self._call(node, args, kwargs)
        except PassError as error:
            error.node = error.node or node.name
            raise
        except Exception:  # noqa: BLE001 - whatever an operator cannot do fake, its value stays what was known
            return self.known(node)
        if self._made_symbols():
            known = self.known(node)
            return value if known is UNKNOWN else known
        if self._repeated is not None and key is not None:
            self._repeated.add(key, value)
        return value

    def _call(self, node: Node, args: Any, kwargs: Any) -> Any:
        target: Any = node.target
        check_numbers(target, (*args, *kwargs.values()))
        check_not_packed(target, args, kwargs)
        check_outputs(target, args, kwargs)
        if node.op == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        if node.op == "call_module":
            return self._call_module(str(target), args, kwargs)
        if isinstance(target, HigherOrderOperator):
            known = self.known(node)
            if known is UNKNOWN or self._enter_bodies:
                computed = self._higher_order(target, args)
                return known if computed is UNKNOWN else computed
            return known
        return target(*args, **kwargs)

    def _call_module(self, path: str, args: Any, kwargs: Mapping[str, Any]) -> Any:
        called = self.module.get_submodule(path)
        if isinstance(called, GraphModule):
            return self._body(called, args)
        if any(isinstance(part, GraphModule) for part in called.modules()):
            return UNKNOWN
        operand = next((a for a in tree_leaves(args) if isinstance(a, torch.Tensor)), None)
        device = operand.device if operand is not None else None
        tensors = {
            name: self._fake(f"{path}.{name}", tensor, device)
            for name, tensor in (*called.named_parameters(), *called.named_buffers())
        }
        return torch.func.functional_call(called, tensors, args, dict(kwargs))

    def _higher_order(self, op: HigherOrderOperator, args: Any) -> Any:
        place = next((i for i, a in enumerate(args) if isinstance(a, GraphModule)), None)
        skipped = _WRAPPERS.get(str(op))
        if place is None or skipped is None:
            return UNKNOWN
        operands = args[place + 1 + skipped :]
        if str(op) != "wrap_with_autocast":
            return self._body(args[place], operands)
        device, dtype, enabled, cache = args[:4]
        with torch.autocast(device, dtype=dtype, enabled=enabled, cache_enabled=cache):
            return self._body(args[place], operands)

    def _body(self, body: GraphModule, operands: Any) -> Any:
        run = FakeRun(body, self.mode, enter_bodies=self._enter_bodies)
        inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
        for node, operand in zip(inputs, operands, strict=False):
            run.give(node, operand)
        return run.output()

    def _attribute(self, node: Node) -> Any:
        path = str(node.target)
        if path not in self._attributes:
            value = attribute_at(self.module, path)
            if isinstance(value, torch.Tensor):
                known = self.known(node)
                value = known if known is not UNKNOWN else self._fake(path, value, None)
            self._attributes[path] = value
        return self._attributes[path]

    def _fake(self, path: str, tensor: torch.Tensor, device: torch.device | None) -> Any:
        """A fake tensor for an attribute.

        Values sent by the caller are on the CPU regardless of the graph's devices, so a module's
        tensors are put on the device of its operand.
        """
        if path in self._attributes:
            return self._attributes[path]
        with unset_fake_temporarily():
            stand_in = stand_in_of(tensor)
            if stand_in is not None:
                tables = stand_in.tables
                row = tables.body.tensors[stand_in.attribute.tensor]
                fake: Any = fake_tensor(tables, row, self.mode)
            else:
                fake = self.mode.from_tensor(tensor, static_shapes=True)
        if stand_in is None and device is not None and not tensor.is_meta:
            fake = fake.to(device)
        self._attributes[path] = fake
        return fake

    def _adopt(self, value: Any) -> Any:
        """The value with its tensors in this run's mode; UNKNOWN if that is impossible."""
        adopted = tree_map(self._adopt_leaf, value)
        return UNKNOWN if tree_any(lambda leaf: leaf is UNKNOWN, adopted) else adopted

    def _adopt_leaf(self, value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if isinstance(value, FakeTensor):
            if value.fake_mode is self.mode:
                return value
            if not all(isinstance(size, int) for size in (*value.shape, *value.stride())):
                return UNKNOWN
            with self.mode:
                return torch.empty_strided(
                    value.shape, value.stride(), dtype=value.dtype, device=value.device
                )
        return self.mode.from_tensor(value, static_shapes=True)

    def _made_symbols(self) -> bool:
        """Whether the last call created symbols for data-dependent sizes; clears them."""
        env = self.mode.shape_env
        if env is None or not env.pending_fresh_unbacked_symbols:
            return False
        env.pending_fresh_unbacked_symbols.clear()
        return True


def same_metadata(one: Any, other: Any) -> bool:
    """Whether two values have the same structure, sizes, dtypes, devices and numbers."""
    leaves, shape = tree_flatten(one)
    others, other_shape = tree_flatten(other)
    return (
        len(leaves) == len(others)
        and shape == other_shape
        and all(_facts(a) == _facts(b) for a, b in zip(leaves, others, strict=True))
    )


def _facts(leaf: Any) -> tuple[Any, ...]:
    if isinstance(leaf, FakeTensor):
        strided = leaf.layout is torch.strided
        return (
            "tensor",
            leaf.dtype,
            leaf.device,
            leaf.layout,
            *(_number(size) for size in leaf.shape),
            *((_number(step) for step in leaf.stride()) if strided else ()),
        )
    return (_number(leaf),)


def _number(value: Any) -> Any:
    """A number for comparison: symbolic ones by their expression, which creates no guard."""
    if isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool):
        expr = value.node.expr
        # A pair, as below: sympy raises when it compares an expression with a number.
        return (int, int(expr)) if expr.is_Integer else (type(value), expr)
    return (type(value), value)


def _mode_of(module: GraphModule) -> FakeTensorMode:
    for node in module.graph.nodes:
        for key in ("val", "example_value"):
            for leaf in tree_leaves(node.meta.get(key)):
                if isinstance(leaf, FakeTensor):
                    return leaf.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv())
