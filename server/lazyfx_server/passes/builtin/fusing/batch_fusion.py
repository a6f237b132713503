"""Passes that batch similar calls into one: linear layers, normalizations, activations."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx.shared.native.setting_types import Words
from lazyfx_server.passes.analysis.walk import graph_modules
from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.torch_steps.step_runner import TorchStep, run_steps
from lazyfx_server.passes.torch_steps.torch_inductor_passes import BATCHED, batch


@dataclass(frozen=True)
class BatchFusion(Pass):
    """Fuses similar, independent calls into one call over stacked operands.

    By torch's group_batch_fusion: linear layers and products of the same sizes become one batched
    product, layer normalizations and element-wise calls one call over a stack. It pays where there
    are many small ones: recommenders, mixtures of experts. Graphs that write to tensors are left
    unchanged.
    """

    name: ClassVar[str] = "batch_fusion"
    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True

    kinds: tuple[str, ...] = field(
        default=("linear", "layer_norm"),
        metadata={"help": f"Any of {', '.join(BATCHED)}.", "takes": Words(tuple(BATCHED))},
    )
    at_least: int = field(default=5, metadata={"help": "Minimum number of calls to fuse."})

    def __post_init__(self) -> None:
        unknown = [kind for kind in self.kinds if kind not in BATCHED]
        if unknown or not self.kinds:
            raise ValueError(f"kinds must be some of {', '.join(BATCHED)}")
        if self.at_least < 2:
            raise ValueError("at_least must be 2 or more")

    def fingerprint(self) -> str:
        """The version of torch, which does the fusion."""
        return torch.__version__

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Fuses in place, including in nested GraphModules."""
        aten = any(_is_aten(part) for part in graph_modules(module))
        steps = []
        for kind in self.kinds:
            name = BATCHED[kind][1 if aten else 0]
            if name is not None:
                steps.append(TorchStep(kind, partial(_batch, name, self.at_least)))
        return run_steps(module, steps, "val" if aten else "example_value")


def _is_aten(module: GraphModule) -> bool:
    return any(isinstance(n.target, OpOverload | OpOverloadPacket) for n in module.graph.nodes)


def _batch(name: str, at_least: int, module: GraphModule, mode: FakeTensorMode) -> None:
    batch(module, name, mode, at_least)
