"""The search for patterns finds what torch's own matcher finds, on generated and real graphs."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from passes.generated_rewrites import graph_and_rewrites
from passes.sequential_rewrites import rewrite_one_by_one
from torch.fx import GraphModule, symbolic_trace
from torch.fx._lazy_graph_module import _LazyGraphModule

import lazyfx
import zoo.captures
from bench.rewrites import Aten, Torch, rewrites
from lazyfx.shared import wire
from lazyfx_server.lazy import RecompileLedger, lazy_job, make_lazy
from lazyfx_server.passes import PassContext
from lazyfx_server.passes.base import Rewrite
from lazyfx_server.passes.builtin.fusing.replace_pattern import ReplacePattern

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("torch-*/*.lazyfx"))


def outcome(module: GraphModule, work: Callable[[GraphModule], int]) -> dict[str, Any]:
    """What a way of rewriting leaves behind, names included, and the recompiles it asks for."""
    ledger = RecompileLedger()
    with lazy_job(ledger):
        # Copied here: code of a plain copy would be generated, and not every graph has such code.
        module = make_lazy(copy.deepcopy(module), ledger)
        matches = work(module)
    parts = {path: part for path, part in module.named_modules() if isinstance(part, GraphModule)}
    for part in parts.values():
        part.graph.lint()
    return {
        "matches": matches,
        "graphs": {path: _lines(part) for path, part in parts.items()},
        "constants": {
            f"{path}.{name}": value.tolist()
            for path, part in parts.items()
            for name, value in vars(part).items()
            if name.startswith("_replaced_")
        },
        "asked": (ledger.requested(), ledger.performed()),
    }


def _lines(part: GraphModule) -> list[tuple[str, ...]]:
    return [
        (n.name, n.op, str(n.target), str(n.args), str(n.kwargs), str(sorted(n.meta)))
        for n in part.graph.nodes
    ]


def both(module: GraphModule, pairs: list[Rewrite]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The outcomes of the pass, and of torch's matcher for each rewrite."""

    def ours(given: GraphModule) -> int:
        note = ReplacePattern().run(given, PassContext(tuple(pairs))).note
        return int(note.removesuffix(" matches"))

    return outcome(module, ours), outcome(module, lambda given: rewrite_one_by_one(given, pairs))


def thirty(module: GraphModule) -> list[Rewrite]:
    """The rewrites of the benchmark, in the spelling of a graph."""
    return _thirty(any("aten" in str(node.target) for node in module.graph.nodes))


@functools.lru_cache
def _thirty(aten: bool) -> list[Rewrite]:
    pairs = rewrites(Aten() if aten else Torch(), 2, 8, 32, 8)
    return [Rewrite(symbolic_trace(one), symbolic_trace(other)) for one, other in pairs]


def _compared(seeds: range) -> int:
    """Compares generated cases; returns how many matches were replaced in all."""
    matches = 0
    for seed in seeds:
        ours, theirs = both(*graph_and_rewrites(Random(seed)))
        assert ours == theirs, f"seed {seed}"
        matches += ours["matches"]
    return matches


def test_generated_rewrites_do_what_torch_does() -> None:
    assert _compared(range(40)) > 60


@pytest.mark.slow
def test_two_thousand_generated_rewrites_do_what_torch_does() -> None:
    assert _compared(range(2_000)) > 4_000


def test_there_are_golden_graphs() -> None:
    assert len(GOLDEN) >= 30


@pytest.mark.long
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_golden_graphs_are_rewritten_as_torch_does(path: Path) -> None:
    saved = lazyfx.load_graph(path)
    module = wire.decode(saved.body, saved.presentation, module_class=_LazyGraphModule)
    # Its own calls as patterns match everywhere, so that the graphs change.
    ours, theirs = both(module, [*thirty(module), *_own_calls(module)])
    assert ours == theirs


def _negated(target: Any) -> Rewrite:
    return Rewrite(
        symbolic_trace(lambda x: target(x)), symbolic_trace(lambda x: torch.neg(target(x)))
    )


def _own_calls(module: GraphModule) -> list[Rewrite]:
    """For each function that a graph calls on one value, a rewrite of such calls."""
    found: dict[Any, Rewrite] = {}
    for node in module.graph.nodes:
        single = node.op == "call_function" and len(node.args) == 1 and not node.kwargs
        if single and isinstance(node.args[0], torch.fx.Node):
            found[node.target] = _negated(node.target)
    return list(found.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.ARCHITECTURES)
def test_captures_of_models_are_rewritten_as_torch_does(name: str) -> None:
    compared = 0
    for way in ("symbolic", "export", "dynamo"):
        model, example = zoo.ARCHITECTURES[name].build()
        try:
            found = zoo.captures.WAYS[way](model, example)
        except Exception:  # noqa: BLE001 - captures raise what they like
            continue
        for capture in found:
            ours, theirs = both(capture.module, thirty(capture.module))
            assert ours == theirs, f"{way}: {capture.label}"
            compared += 1
    assert compared
