"""Passes that report work, memory and parameters as data, without changing the graph."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.storage import StorageMap
from lazyfx_server.passes.base import Pass, PassContext, PassResult


@dataclass(frozen=True)
class Analyze(Pass):
    """Counts floating-point operations, memory and parameters; leaves the graph unchanged.

    The report's data contains: `flops` in total and by operator, as counted by
    torch.utils.flop_counter (matrix operations only); `parameters` and their bytes; `peak_bytes`,
    the peak memory of the graph's values if each is freed after its last use, and the node at the
    peak; `unknown`, calls of unknown shape, which are not counted. Symbolic sizes count as in the
    captured example.
    """

    name: ClassVar[str] = "analyze"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True
    mutates: ClassVar[bool] = False

    top: int = field(default=10, metadata={"help": "Maximum number of operators listed."})

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Computes on fake tensors; changes nothing."""
        run = FakeRun(module, enter_bodies=True)
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        if inputs and not any(run.is_known(node) for node in inputs):
            return PassResult(module, False, "skipped: the inputs have no shapes")
        flops, unknown = in_fresh_thread(lambda: _flops(module, run))
        data = {
            "flops": sum(flops.values()),
            "flops_by_operator": dict(flops.most_common(self.top)),
            "unknown": unknown,
            **_parameters(module),
            **_peak(module, run),
        }
        note = f"{data['flops']:.4g} flops, {data['peak_bytes']} bytes at peak"
        return PassResult(module, False, note, data)


def _flops(module: GraphModule, run: FakeRun) -> tuple[Counter[str], int]:
    found: Counter[str] = Counter()
    unknown = 0
    with run.active():
        for node in module.graph.nodes:
            if node.op == "output":
                continue
            with FlopCounterMode(display=False) as counter:
                value = run.compute(node)
            count = _number(counter.get_total_flops())
            if count is None or (value is UNKNOWN and node.op != "placeholder"):
                unknown += 1
            if count:
                found[operator_name(node) or str(node.target)] += count
    return found, unknown


def _parameters(module: GraphModule) -> Mapping[str, int]:
    parameters = list(module.parameters())
    buffers = list(module.buffers())
    return {
        "parameters": sum(p.numel() for p in parameters),
        "parameter_bytes": sum(p.numel() * p.element_size() for p in parameters),
        "buffer_bytes": sum(b.numel() * b.element_size() for b in buffers),
    }


def _peak(module: GraphModule, run: FakeRun) -> Mapping[str, Any]:
    """The peak bytes of the values; views cost nothing and keep their base alive."""
    storage = StorageMap(module.graph)
    last: dict[Node, int] = {}
    for node, place in storage.position.items():
        for operand in node.all_input_nodes:
            _keep(operand, place, last, storage)
    freed: defaultdict[int, int] = defaultdict(int)
    now = peak = 0
    at = ""
    for node, place in storage.position.items():
        if node.op.startswith("call_") and not storage.effects[node].aliases:
            size = _bytes(run.value(node))
            now += size
            freed[last.get(node, place)] += size
        if now > peak:
            peak, at = now, node.name
        now -= freed[place]
    return {"peak_bytes": peak, "peak_node": at}


def _keep(node: Node, place: int, last: dict[Node, int], storage: StorageMap) -> None:
    pending = [node]
    while pending:
        here = pending.pop()
        if last.get(here, -1) < place:
            last[here] = place
            pending.extend(storage.effects[here].aliases)


def _bytes(value: Any) -> int:
    tensors = (leaf for leaf in tree_leaves(value) if isinstance(leaf, torch.Tensor))
    sizes = ((_number(t.numel()), t.element_size()) for t in tensors)
    return sum(count * size for count, size in sizes if count is not None)


def _number(count: int | torch.SymInt) -> int | None:
    """A count as a number, with symbolic sizes as in the example; None if it is unknown."""
    if isinstance(count, torch.SymInt):
        hint = count.node.hint if count.node.has_hint() else None
        count = hint if isinstance(hint, int) else -1
    # Made-up sizes may give numbers that do not fit into a report.
    return count if 0 <= count < 2**63 else None
