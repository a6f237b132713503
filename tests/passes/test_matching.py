"""The search for patterns finds what torch's own matcher finds, on generated and real graphs."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from passes.generated_rewrites import graph_and_rewrites
from passes.sequential_rewrites import rewrite_one_by_one
from torch.fx import GraphModule, symbolic_trace

import lazyfx
from bench.rewrites import Aten, Torch, rewrites
from lazyfx.shared import wire
from lazyfx_server.lazy import RecompileLedger, lazy_job, make_lazy
from lazyfx_server.passes import PassContext
from lazyfx_server.passes.base import Rewrite
from lazyfx_server.passes.builtin.fusing.replace_pattern import ReplacePattern

GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("torch-2.13/*.lazyfx"))


def outcome(module: GraphModule, work: Any) -> tuple[Any, ...]:
    """What a way of rewriting leaves behind, and what it asks for."""
    ledger = RecompileLedger()
    with lazy_job(ledger):
        module = make_lazy(module, ledger)
        matches = work(module)
    parts = {path: part for path, part in module.named_modules() if isinstance(part, GraphModule)}
    for part in parts.values():
        part.graph.lint()
    texts = {path: _text(part) for path, part in parts.items()}
    values = {name: value.tolist() for name, value in vars(module).items() if "_replaced" in name}
    return matches, texts, values, ledger.requested(), ledger.performed()


def _text(part: GraphModule) -> list[str]:
    return [f"{n.format_node()} {sorted(n.meta)}" for n in part.graph.nodes if n.format_node()] + [
        str(part.graph.output_node().args)
    ]


def both(module: GraphModule, pairs: list[Rewrite]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """The outcomes of the two ways."""

    def ours(given: GraphModule) -> int:
        result = ReplacePattern().run(given, PassContext(tuple(pairs)))
        assert result.module is given
        return int(result.note.removesuffix(" matches"))

    one, other = copy.deepcopy(module), copy.deepcopy(module)
    return outcome(one, ours), outcome(other, lambda given: rewrite_one_by_one(given, pairs))
