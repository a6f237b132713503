"""GPT-2 with all its layers, in two captures, and the pipelines to run over it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch.fx import GraphModule

from bench.rewrites import Aten, Torch, pipeline
from lazyfx.shared.pass_specs import PassSpec

BATCH, LENGTH = 2, 64


@dataclass(frozen=True)
class Case:
    """A captured graph and the passes to run over it."""

    name: str
    module: GraphModule
    passes: list[str | PassSpec]

    @property
    def nodes(self) -> int:
        return len(self.module.graph.nodes)


def gpt2_cases() -> list[Case]:
    """GPT-2 small (12 layers of width 768, random weights), by torch.export and by dynamo."""
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    quiet: Any = logging.set_verbosity_error
    quiet()
    torch.manual_seed(0)
    config = GPT2Config(use_cache=False)
    model: Any = GPT2LMHeadModel(config)
    model.eval()
    example = {"input_ids": torch.randint(0, config.vocab_size, (BATCH, LENGTH))}
    sizes = (BATCH, LENGTH, config.n_embd, config.n_embd // config.n_head)
    exported = torch.export.export(model, (), kwargs=example, strict=False)
    module: Any = exported.module(check_guards=False)
    return [
        Case("export", module, pipeline(Aten(), sizes)),
        Case("dynamo", _dynamo(model, example), pipeline(Torch(), sizes)),
    ]


def _dynamo(model: torch.nn.Module, example: dict[str, torch.Tensor]) -> GraphModule:
    caught: list[GraphModule] = []

    def backend(module: GraphModule, _inputs: list[Any]) -> Callable[..., Any]:
        caught.append(module)
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(**example)
    torch._dynamo.reset()
    return caught[0]
