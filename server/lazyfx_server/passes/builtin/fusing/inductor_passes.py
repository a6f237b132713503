"""Inductor's graph passes, step by step: before autograd, on joint graphs, and after."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule

from lazyfx_server.passes.base import Pass, PassContext, PassResult
from lazyfx_server.passes.torch_steps.step_runner import TorchStep, run_steps
from lazyfx_server.passes.torch_steps.torch_inductor_passes import STEPS, Stage, run_step


@dataclass(frozen=True)
class _InductorPass(Pass):
    """Code shared by the three stages."""

    version: ClassVar[int] = 3
    needs_shapes: ClassVar[bool] = True
    stage: ClassVar[Stage]
    # Where the steps of the stage look for values.
    key: ClassVar[str] = "val"
    # Steps that run only if named.
    on_request: ClassVar[frozenset[str]] = frozenset()

    steps: tuple[str, ...] = field(
        default=(),
        metadata={"help": "Steps to run, always in torch's order; the default steps if empty."},
    )

    def __post_init__(self) -> None:
        known = STEPS[self.stage]
        unknown = [step for step in self.steps if step not in known]
        if unknown:
            raise ValueError(f"no step is named {unknown[0]!r}; there are {', '.join(known)}")

    def fingerprint(self) -> str:
        """The version of torch, whose steps they are."""
        return torch.__version__

    def run(self, module: GraphModule, context: PassContext) -> PassResult:  # noqa: ARG002 - contract
        """Runs the steps in place, including in nested GraphModules."""
        names = [
            name
            for name in STEPS[self.stage]
            if (name in self.steps if self.steps else name not in self.on_request)
        ]
        steps = [
            TorchStep(name, partial(_apply, self.stage, name), name in _WRITING) for name in names
        ]
        return run_steps(module, steps, self.key)


def _apply(stage: Stage, name: str, module: GraphModule, mode: FakeTensorMode) -> None:
    run_step(stage, name, module, mode)


_WRITING = frozenset({"reinplace_inplaceable_ops"})


@dataclass(frozen=True)
class InductorPreGrad(_InductorPass):
    """Runs Inductor's passes before autograd, for graphs of torch functions.

    Cancels splits, concatenations, stacks and unbinds that undo each other, and moves
    concatenations after element-wise calls. For graphs of dynamo and symbolic_trace; on aten graphs
    most steps find nothing.
    """

    name: ClassVar[str] = "inductor_pre_grad"
    stage: ClassVar[Stage] = "pre_grad"
    key: ClassVar[str] = "example_value"


@dataclass(frozen=True)
class InductorJointGraph(_InductorPass):
    """Runs Inductor's passes for joint graphs: pointless views and casts, uniform constants.

    For aten graphs: of AOTAutograd (joint, forward, backward), and of torch.export.
    """

    name: ClassVar[str] = "inductor_joint_graph"
    version: ClassVar[int] = 4
    stage: ClassVar[Stage] = "joint_graph"


@dataclass(frozen=True)
class InductorPostGrad(_InductorPass):
    """Runs Inductor's passes after autograd: no-ops, splits of concatenations, bias into addmm.

    For aten graphs of AOTAutograd. `reinplace_inplaceable_ops`, which overwrites values that are
    not read again, runs only if named, and only if no tensor requires grad.
    """

    name: ClassVar[str] = "inductor_post_grad"
    stage: ClassVar[Stage] = "post_grad"
    on_request: ClassVar[frozenset[str]] = _WRITING
