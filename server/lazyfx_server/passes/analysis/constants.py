"""Finds the constant nodes of a graph and computes their values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves

from lazyfx_server.passes.analysis.evaluation import reviewed
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun, same_metadata
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.output_counts import check_outputs
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.analysis.walk import attribute_at


@dataclass(frozen=True, slots=True)
class ConstantRules:
    """What counts as constant.

    Attributes:
        parameters: Parameters, even trained ones.
        buffers: Buffers.
        max_bytes: The maximum size of every intermediate value.
        need_values: Exclude tensors without values (on the meta device).
    """

    parameters: bool
    buffers: bool
    max_bytes: int
    need_values: bool


@dataclass(frozen=True, slots=True)
class ConstantNodes:
    """The constant part of a graph.

    Attributes:
        nodes: Every constant node, attribute reads included, in graph order.
        results: Nodes whose values the rest of the graph reads and that can be stored as one
            tensor, in graph order.
        fakes: The values as fake tensors.
    """

    nodes: tuple[Node, ...]
    results: tuple[Node, ...]
    fakes: dict[Node, Any]

    def needed(self) -> list[Node]:
        """The nodes that must be computed to get the results, in graph order."""
        wanted: set[Node] = set(self.results)
        for node in reversed(self.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        return [node for node in self.nodes if node in wanted]

    def bytes(self) -> int:
        """Bytes of all results."""
        return sum(size_of(self.fakes[node]) for node in self.results)


def find_constants(module: GraphModule, rules: ConstantRules) -> ConstantNodes:
    """Finds the constant nodes of the root graph, without computing real values."""
    if not _may_have_constants(module, rules):
        return ConstantNodes((), (), {})
    return in_fresh_thread(lambda: _find(module, rules))


def may_read_tensors(module: GraphModule, rules: ConstantRules) -> bool:
    """Whether something foldable could read a tensor attribute, by a quick check."""
    return any(
        node.op == "call_module"
        or (node.op == "get_attr" and _is_constant_tensor(module, str(node.target), rules))
        for node in module.graph.nodes
    )


def size_of(value: Any) -> int:
    """Bytes of the tensors in a value."""
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


def compute(module: GraphModule, nodes: Sequence[Node], wanted: set[Node]) -> dict[Node, Any]:
    """Computes constant nodes on real values; each value is freed after its last use.

    Args:
        module: Its attributes are read. Nested GraphModules are never called.
        nodes: Closed under operands, in graph order.
        wanted: The nodes whose values are kept.

    Returns:
        The values of `wanted`, without nodes that fail on this host or may not run on real values,
        and without those that depend on them.
    """
    values: dict[Node, Any] = {}
    last_use = {operand: node for node in nodes for operand in node.all_input_nodes}
    with torch.no_grad(), reviewed():
        for node in nodes:
            if all(operand in values for operand in node.all_input_nodes):
                try:
                    values[node] = _execute(module, node, values)
                except Exception:  # noqa: BLE001 - what cannot run here is left in the graph
                    values.pop(node, None)
            for operand in node.all_input_nodes:
                if last_use[operand] is node and operand not in wanted:
                    values.pop(operand, None)
    return {node: values[node] for node in wanted if node in values}


def _execute(module: GraphModule, node: Node, values: dict[Node, Any]) -> Any:
    if node.op == "get_attr":
        return attribute_at(module, str(node.target))
    args: Any = torch.fx.node.map_arg(node.args, values.__getitem__)
    kwargs: Any = torch.fx.node.map_arg(node.kwargs, values.__getitem__)
    if node.op == "call_module":
        return module.get_submodule(str(node.target))(*args, **kwargs)
    target: Any = node.target
    check_outputs(target, args, kwargs)
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _may_have_constants(module: GraphModule, rules: ConstantRules) -> bool:
    """A quick check, so that graphs without constants cost nothing."""
    return any(
        (node.op == "get_attr" and _is_constant_tensor(module, str(node.target), rules))
        or (node.op in {"call_function", "call_module"} and not node.all_input_nodes)
        for node in module.graph.nodes
    )


def _find(module: GraphModule, rules: ConstantRules) -> ConstantNodes:
    storage = StorageMap(module.graph, frozen=True)
    run = FakeRun(module)
    fakes: dict[Node, Any] = {}
    context = _Context()
    with run.active():
        for node in module.graph.nodes:
            context.pass_by(node, state=storage.effects[node].state)
            if node.op in {"placeholder", "output"} or context.blocks:
                continue
            if not all(operand in fakes for operand in node.all_input_nodes):
                continue
            if not _is_candidate(module, node, storage, rules):
                continue
            value = run.compute(node)
            if _is_usable(value, rules) and _agrees(module, node, run, value):
                fakes[node] = value
    results = tuple(
        node
        for node, value in fakes.items()
        if node.op != "get_attr"
        and any(user not in fakes for user in node.users)
        and _can_be_kept(node, value, storage)
    )
    return ConstantNodes(tuple(fakes), results, fakes)


class _Context:
    """Tracks context switches (autocast, grad mode); constants are computed outside them."""

    def __init__(self) -> None:
        self._autocast: dict[Node, bool] = {}
        self._unknown = False

    @property
    def blocks(self) -> bool:
        """Whether a node here may compute something different from outside."""
        return self._unknown or any(self._autocast.values())

    def pass_by(self, node: Node, *, state: bool) -> None:
        """Records a node."""
        target: Any = node.target
        name = getattr(target, "__name__", "")
        if not state or node.op != "call_function":
            self._unknown |= state and node.op != "call_module"
        elif name == "_enter_autocast":
            self._autocast[node] = node.args[2] is not False if len(node.args) > 2 else True
        elif name == "_exit_autocast":
            for entered in node.all_input_nodes:
                self._autocast.pop(entered, None)
        elif not (
            isinstance(target, HigherOrderOperator | OpOverload | OpOverloadPacket)
            or name.startswith(("_vmap_", "_add_batch_dim", "_remove_batch_dim"))
            or "grad" in name
        ):
            self._unknown = True


def _is_candidate(
    module: GraphModule, node: Node, storage: StorageMap, rules: ConstantRules
) -> bool:
    """Whether a node is constant if its operands are; cheap to check."""
    effects = storage.effects[node]
    if storage.written(node) or storage.held_written(node) or not effects.pure:
        return False
    if node.op == "get_attr":
        return _is_constant_tensor(module, str(node.target), rules)
    if not effects.mergeable:
        return False
    if node.op != "call_module":
        return True
    called = module.get_submodule(str(node.target))
    if any(isinstance(part, GraphModule) for part in called.modules()):
        return False
    names = [name for name, _ in (*called.named_parameters(), *called.named_buffers())]
    return all(_is_constant_tensor(module, f"{node.target}.{name}", rules) for name in names)


def _is_constant_tensor(module: GraphModule, path: str, rules: ConstantRules) -> bool:
    value = attribute_at(module, path)
    if not isinstance(value, torch.Tensor) or isinstance(value, FakeTensor):
        return False
    if rules.need_values and value.is_meta:
        return False
    if value.requires_grad and not rules.parameters:
        return False
    owner = attribute_at(module, path.rpartition(".")[0]) if "." in path else module
    is_buffer = isinstance(owner, torch.nn.Module) and path.rpartition(".")[2] in owner._buffers  # noqa: SLF001 - no public way to ask
    return rules.buffers or not is_buffer


def _is_usable(value: Any, rules: ConstantRules) -> bool:
    """Whether a value consists of tensors with concrete sizes, on a device that this host has."""
    leaves = tree_leaves(value)
    if value is UNKNOWN or not leaves:
        return False
    for leaf in leaves:
        if isinstance(leaf, bool | int | float):
            continue
        if not isinstance(leaf, FakeTensor) or leaf.layout is not torch.strided:
            return False
        if not all(type(size) is int for size in (*leaf.shape, *leaf.stride())):
            return False
        # Without values, a tensor may be on the meta device because its real device is unknown.
        if not (_has_device(leaf.device) or (leaf.is_meta and not rules.need_values)):
            return False
        if size_of(leaf) > rules.max_bytes:
            return False
    return True


def _agrees(module: GraphModule, node: Node, run: FakeRun, value: Any) -> bool:
    """Whether the value matches what the capture recorded, if it did.

    It may not: under an autocast outside the graph, or for values sent to a host without their
    device.
    """
    known = run.known(node)
    if known is not UNKNOWN and not same_metadata(known, value):
        return False
    if node.op != "get_attr":
        return True
    tensor = attribute_at(module, str(node.target))
    assert isinstance(tensor, torch.Tensor)
    return tensor.is_meta or tensor.device == value.device


def _has_device(device: torch.device) -> bool:
    if device.type == "cuda":
        return (device.index or 0) < torch.cuda.device_count()
    return device.type == "cpu"


def _can_be_kept(node: Node, value: Any, storage: StorageMap) -> bool:
    """Whether one tensor attribute can replace the value in every call."""
    return (
        isinstance(value, FakeTensor)
        and not storage.escapes(node)
        and not value.is_conj()
        and not value.is_neg()
        and torch._prims_common.is_non_overlapping_and_dense_or_false(value)  # noqa: SLF001 - no public way to ask
    )
