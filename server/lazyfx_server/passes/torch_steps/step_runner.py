"""Runs one of torch's steps over a graph, and reverts it if it did more than it should.

Inductor's steps assume graphs as their compiler creates them: functional, with values for all
nodes, and without requires_grad. This is checked before and after each step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.utils._pytree import tree_leaves

from lazyfx.shared.wire.targets.allow_table import name_of
from lazyfx_server.passes.analysis.called_operators import NO_SHAPES, KnownValues, requires_grad
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.fake_run import UNKNOWN, FakeRun, same_metadata
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import PassResult

Apply = Callable[[GraphModule, FakeTensorMode], None]


@dataclass(frozen=True, slots=True)
class TorchStep:
    """A graph transformation of torch.

    Attributes:
        name: Its name in the report.
        apply: Changes the graph of a module whose nodes have their values.
        may_write: It may create calls that write to their operands; skipped if a tensor requires
            grad, because autograd saves operands for the backward.
    """

    name: str
    apply: Apply
    may_write: bool = False


def run_steps(module: GraphModule, steps: Sequence[TorchStep], key: str) -> PassResult:
    """Runs steps over a module and its nested GraphModules.

    A step is reverted, with a note, if it raises, creates a call that cannot be serialized, removes
    or moves something with side effects, or changes the metadata of an output (dtype, sizes,
    strides).

    Args:
        module: Changed in place.
        steps: In order.
        key: Where the steps look for values besides `val`: "example_value" before autograd.
    """
    if not any(KnownValues(part).any_known for part in graph_modules(module)):
        return PassResult(module, False, NO_SHAPES)
    notes: list[str] = []
    changed: dict[str, int] = {}
    for part in graph_modules(module):
        reason = _unfit(part) or in_fresh_thread(lambda p=part: _run(p, steps, key, changed, notes))  # type: ignore[misc]
        if reason:
            notes.append(f"skipped: {reason}")
    note = "; ".join(dict.fromkeys([*(f"{name}" for name in changed), *notes]))
    return PassResult(module, bool(changed), note)


def _unfit(module: GraphModule) -> str:
    for node in module.graph.nodes:
        if node.op.startswith("call_"):
            effects = effects_of(node)
            if effects.writes or effects.state:
                return f"{node.name} has side effects; run functionalize first"
    return ""


def _run(
    module: GraphModule,
    steps: Sequence[TorchStep],
    key: str,
    changed: dict[str, int],
    notes: list[str],
) -> str:
    run = FakeRun(module)
    values = _values(run)
    if values is None:
        return "some values have no shape"
    accepted = False
    trains = any(step.may_write for step in steps) and requires_grad(module, KnownValues(module))
    for step in steps:
        if step.may_write and trains:
            notes.append(f"{step.name} skipped: a tensor requires grad")
            continue
        before = module.graph
        metadata = {node.name: node.meta for node in before.nodes}
        trial = _copy(module, values, key)
        written = _text(trial)
        module._graph = trial  # noqa: SLF001 - the setter would ask for a recompile
        problem = _try(module, step, run.mode)
        same = not problem and _text(trial) == written
        found = None if problem or same else _values(FakeRun(module, run.mode))
        if found is not None:
            problem = _problem(before, values, trial, found, step)
        elif not problem and not same:
            problem = "a value has no shape afterwards"
        if problem or found is None:
            module._graph = before  # noqa: SLF001
            notes += [f"{step.name} reverted: {problem}"] if problem else []
            continue
        _give_metadata(trial, metadata, found)
        values, accepted = found, True
        changed[step.name] = changed.get(step.name, 0) + 1
    if accepted:
        module.recompile()
    return ""


def _values(run: FakeRun) -> dict[Node, Any] | None:
    """The value of each node, or None if any is unknown."""
    with run.active():
        for node in run.module.graph.nodes:
            if node.op != "output" and run.compute(node) is UNKNOWN:
                return None
    return {node: run.value(node) for node in run.module.graph.nodes if node.op != "output"}


def _copy(module: GraphModule, values: dict[Node, Any], key: str) -> Graph:
    graph, old = Graph(owning_module=module), module.graph
    made: dict[Node, Node] = {}
    for node in old.nodes:
        made[node] = graph.node_copy(node, made.__getitem__)
        made[node].name = node.name
        made[node].meta = {} if node.op == "output" else {"val": values[node], key: values[node]}
    graph.set_codegen(old._codegen)  # noqa: SLF001 - torch's own way to keep a signature
    return graph


def _try(module: GraphModule, step: TorchStep, mode: FakeTensorMode) -> str:
    """Applies a step; returns why it failed, if it did."""
    try:
        step.apply(module, mode)
        module.graph.lint()
    except Exception as error:  # noqa: BLE001 - a step that cannot leaves the graph as it was
        return f"torch raised {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return ""


def _problem(
    before: Graph,
    values: dict[Node, Any],
    after: Graph,
    found: dict[Node, Any],
    step: TorchStep,
) -> str:
    for node in after.nodes:
        if node.op == "call_function" and name_of(node.target) is None:
            return f"{node.target} cannot be serialized"
        if node.op.startswith("call_") and effects_of(node).writes and not step.may_write:
            return f"{node.name} writes in place"
    if _effects(before) != _effects(after):
        return "a call with side effects would be removed or moved"
    fresh = zip(_fresh_results(before), _fresh_results(after), strict=False)
    if any(was and not stays for was, stays in fresh):
        return "a result would be a view of another value"
    results = [
        torch.fx.node.map_arg(graph.output_node().args[0], known.__getitem__)
        for graph, known in ((before, values), (after, found))
    ]
    return "" if same_metadata(*results) else "an output would have a different layout"


def _effects(graph: Graph) -> list[str]:
    """What must stay in order: draws, assertions and other side effects.

    By name: two draws of the same kind must not be swapped.
    """
    kept = (node for node in graph.nodes if node.op.startswith("call_"))
    return [
        f"{node.name} {node.target}"
        for node in kept
        if (effects := effects_of(node)).random or (effects.keep and not effects.writes)
    ]


def _fresh_results(graph: Graph) -> list[bool]:
    """For each result, whether it has its own memory."""
    results = tree_leaves(graph.output_node().args[0])
    calls = [isinstance(r, Node) and r.op.startswith("call_") for r in results]
    return [call and not effects_of(r).aliases for call, r in zip(calls, results, strict=True)]


def _give_metadata(
    graph: Graph, metadata: dict[str, dict[str, Any]], found: dict[Node, Any]
) -> None:
    """Old nodes keep their metadata; new ones get their value."""
    for node in graph.nodes:
        if node.op == "output":
            node.meta = dict(metadata.get(node.name, {}))
        elif node.name in metadata:
            node.meta = metadata[node.name]
        else:
            node.meta = {"val": found[node]}


def _text(graph: Graph) -> list[str]:
    """A graph as text with positions instead of node names, since steps rename nodes needlessly."""
    place = {node: f"%{number}" for number, node in enumerate(graph.nodes)}

    def placed(value: Any) -> Any:
        return torch.fx.node.map_arg(value, place.__getitem__)

    return [f"{n.op} {n.target} {placed(n.args)} {placed(n.kwargs)}" for n in graph.nodes]
