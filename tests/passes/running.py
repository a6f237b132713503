"""Runs passes the way the server does, and compares what modules compute."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pass, PassLimits, PassRun, Pipeline
from lazyfx_server.passes.analysis.attribute_memory import remember_storage


@dataclass(frozen=True)
class Ran:
    """What a pipeline left behind."""

    module: GraphModule
    runs: tuple[PassRun, ...]
    ledger: RecompileLedger

    @property
    def changed(self) -> bool:
        return any(run.changed for run in self.runs)

    @property
    def note(self) -> str:
        return self.runs[-1].note


def run(
    module: GraphModule,
    *passes: Pass,
    rewrites: list[tuple[GraphModule, GraphModule]] | None = None,
    limits: PassLimits | None = None,
    in_place: bool = False,
) -> Ran:
    """Runs passes over a module, or a copy of it; the last pass gets the rewrites.

    A copy has its output node renamed and its parameters' own attributes dropped.
    """
    ledger = RecompileLedger()
    given = {len(passes) - 1: tuple(rewrites)} if rewrites else None
    given_module = module if in_place else copy.deepcopy(module)
    outcome = Pipeline(passes).run(given_module, ledger, limits, given)
    outcome.module.graph.lint()
    assert ledger.performed() == 0, "a pass generated code"
    return Ran(outcome.module, outcome.runs, ledger)


def decoded(module: GraphModule, *, values: bool = False) -> GraphModule:
    """The module as a worker sees it: canonical names, tensors on the meta device or bound."""
    encoded = wire.encode(module)
    body = graph_pb2.GraphBody.FromString(encoded.body)

    def bind(graph: int, attribute: int, row: Any) -> torch.Tensor | None:
        found = encoded.attributes[graph][attribute]
        if not values or not isinstance(found, torch.Tensor):
            return None
        # Each has memory of its own in a worker.
        value = found.detach().clone()
        if isinstance(found, torch.nn.Parameter):
            value = torch.nn.Parameter(value, requires_grad=found.requires_grad)
        remember_storage(value, row.tensor.storage, body.tensors[row.tensor.tensor])
        return value

    return wire.decode(encoded.body, bind=bind)


def outputs(module: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The tensors that a module returns for copies of inputs, without gradients."""
    args, kwargs = tree_map(_copied, (args, dict(kwargs)))
    with torch.no_grad():
        return [t for t in tree_leaves(module(*args, **kwargs)) if isinstance(t, torch.Tensor)]


def assert_same(module: GraphModule, other: GraphModule, *args: Any, **kwargs: Any) -> None:
    """Two modules return the same for the same inputs."""
    expected, found = outputs(module, args, kwargs), outputs(other, args, kwargs)
    assert len(expected) == len(found)
    for one, two in zip(expected, found, strict=True):
        torch.testing.assert_close(two, one, rtol=2e-4, atol=2e-5)


def targets(module: GraphModule) -> list[Any]:
    """The targets of the calls of a graph, in order."""
    return [n.target for n in module.graph.nodes if n.op.startswith("call_")]


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
