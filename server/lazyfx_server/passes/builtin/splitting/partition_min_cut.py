"""Passes that partition a joint graph into forward and backward, recomputing cheap values."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from lazyfx.shared.native.setting_types import Float
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.torch_steps.torch_partitioner import partition


@dataclass(frozen=True)
class PartitionMinCut(Pass):
    """Partitions a joint graph of AOTAutograd into `forward_part` and `backward_part`.

    Uses torch's min-cut partitioner: values that are cheap to recompute are not saved for the
    backward, to minimize the saved bytes. The joint graph takes primals, then `num_tangents`
    tangents, and returns `num_outputs` outputs, then gradients; so does the result, which calls the
    two parts. The report's data lists the saved values.
    """

    name: ClassVar[str] = "partition_min_cut"
    version: ClassVar[int] = 2
    needs_shapes: ClassVar[bool] = True

    num_outputs: int = field(
        default=0, metadata={"help": "Number of outputs of the forward graph."}
    )
    num_tangents: int = field(
        default=0, metadata={"help": "Number of tangents; as many as outputs if 0."}
    )
    memory_budget: float = field(
        default=1.0,
        metadata={
            "help": "Fraction of the activations that may be saved, 0 to 1.",
            "takes": Float(0.0, 1.0),
        },
    )

    def __post_init__(self) -> None:
        if self.num_outputs < 0 or self.num_tangents < 0 or not 0 <= self.memory_budget <= 1:
            raise ValueError("counts must not be negative, and memory_budget must be from 0 to 1")

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Gives the module a new graph that calls the two parts.

        Raises:
            PassError: The counts do not fit the graph.
        """
        inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        results = list(tree_leaves(module.graph.output_node().args[0]))
        tangents = self.num_tangents or self.num_outputs
        if not 0 < self.num_outputs < len(results) or not 0 < tangents < len(inputs):
            raise PassError(
                f"the graph has {len(inputs)} inputs and {len(results)} results; set num_outputs "
                "to the number of forward outputs, and num_tangents to the number of tangents",
                field="options.num_outputs",
            )
        reason = _unfit(module)
        if reason:
            return PassResult(module, False, f"skipped: {reason}")
        joint = in_fresh_thread(lambda: _named_joint(module, len(inputs) - tangents))
        if joint is None:
            return PassResult(module, False, "skipped: not every value has a concrete shape")
        try:
            forward, backward = partition(joint, self.num_outputs, self.memory_budget)
        except AssertionError as error:  # what torch raises if it is not a joint graph
            return PassResult(module, False, f"skipped: torch's partitioner failed: {error}")
        crossing = _put_together(module, forward, backward, self.num_outputs, tangents)
        module.recompile()
        kept = sum(_bytes(node) for node in crossing)
        data = {"crossing": len(crossing), "crossing_bytes": kept}
        return PassResult(module, True, f"{len(crossing)} values, {kept} bytes cross", data)


def _unfit(module: GraphModule) -> str:
    for node in module.graph.nodes:
        if node.op in ("get_attr", "call_module"):
            return "the graph has attributes; a joint graph takes them as inputs"
        if node.op.startswith("call_") and not effects_of(node).pure:
            return f"{node.name} has side effects and cannot be recomputed"
    return ""


def _named_joint(module: GraphModule, primals: int) -> GraphModule | None:
    """A copy with the names that the partitioner expects, and all metadata."""
    run = FakeRun(module)
    graph = Graph()
    made: dict[Node, Node] = {}
    place = 0
    with run.active():
        for node in module.graph.nodes:
            if node.op == "output":
                values = [made[v] if isinstance(v, Node) else v for v in tree_leaves(node.args[0])]
                graph.output(values)
                continue
            if node.op == "placeholder":
                stem, number = (
                    ("primals", place) if place < primals else ("tangents", place - primals)
                )
                made[node] = graph.placeholder(f"{stem}_{number + 1}")
                place += 1
            else:
                made[node] = graph.node_copy(node, made.__getitem__)
            value = run.compute(node)
            if value is UNKNOWN:
                return None
            made[node].meta = {"val": value}
    return GraphModule(torch.nn.Module(), graph)


def _put_together(
    module: GraphModule, forward: GraphModule, backward: GraphModule, outputs: int, tangents: int
) -> list[Node]:
    """Makes the module call forward and backward; returns the forward's saved nodes."""
    old = module.graph
    inputs = [node for node in old.nodes if node.op == "placeholder"]
    graph = Graph(owning_module=module)
    given = [graph.node_copy(node) for node in inputs]
    by_name: dict[str, Node] = {}
    primals = len(given) - tangents
    for place, node in enumerate(given):
        number = place if place < primals else place - primals
        stem = "primals" if place < primals else "tangents"
        by_name[f"{stem}_{number + 1}"] = node
    module.add_module("forward_part", forward)
    module.add_module("backward_part", backward)
    taken = [n for n in forward.graph.nodes if n.op == "placeholder"]
    called = graph.call_module("forward_part", tuple(by_name[str(n.target)] for n in taken))
    results: Any = tree_leaves(forward.graph.output_node().args[0])
    made = [graph.call_function(operator.getitem, (called, i)) for i in range(len(results))]
    crossing = [r for r in results[outputs:] if isinstance(r, Node)]
    by_name |= {r.name: m for r, m in zip(results[outputs:], made[outputs:], strict=True)}
    wanted = [n for n in backward.graph.nodes if n.op == "placeholder"]
    back = graph.call_module("backward_part", tuple(by_name[str(n.target)] for n in wanted))
    count = len(tree_leaves(backward.graph.output_node().args[0]))
    gradients = [graph.call_function(operator.getitem, (back, i)) for i in range(count)]
    values = iter([*made[:outputs], *gradients])
    structure = torch.fx.node.map_aggregate(old.output_node().args[0], lambda _: next(values))
    graph.output(structure).meta = dict(old.output_node().meta)
    graph.set_codegen(old._codegen)  # noqa: SLF001 - torch's own way to keep a signature
    graph.lint()
    module._graph = graph  # noqa: SLF001 - the setter would ask for a recompile of its own
    return crossing


def _bytes(node: Node) -> int:
    tensors = (t for t in tree_leaves(node.meta.get("val")) if isinstance(t, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)
