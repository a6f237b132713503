"""Real models captured in every way that a caller may capture them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

Captured = tuple[GraphModule, list[Any]]


def exported(model: nn.Module, kwargs: dict[str, Any], *, decomposed: bool = False) -> Captured:
    """`ep.module()`; called with the keyword arguments."""
    program = torch.export.export(model, (), kwargs=kwargs, strict=False)
    if decomposed:
        program = program.run_decompositions()
    module = program.module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module, [kwargs]


def dynamo(model: nn.Module, kwargs: dict[str, Any]) -> Captured:
    """What a dynamo backend is handed: one graph, its flat inputs."""
    caught: list[Captured] = []

    def backend(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        caught.append((module, list(inputs)))
        return module.forward

    torch._dynamo.reset()
    torch.compile(model, backend=backend, fullgraph=True)(**kwargs)
    torch._dynamo.reset()
    return caught[0]


def aot(model: nn.Module, kwargs: dict[str, Any]) -> tuple[Captured, Captured]:
    """AOTAutograd's forward and backward graphs with the inputs of one training step."""
    from torch._dynamo.backends.common import aot_autograd
    from torch._functorch.aot_autograd import make_boxed_func

    caught: dict[str, Captured] = {}

    def compiler(name: str) -> Callable[..., Any]:
        def compile_(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            def run(*real: Any) -> Any:
                caught.setdefault(name, (module, [_copied(value) for value in real]))
                return module(*real)

            return make_boxed_func(run)

        return compile_

    torch._dynamo.reset()
    backend = aot_autograd(fw_compiler=compiler("forward"), bw_compiler=compiler("backward"))
    result = torch.compile(model, backend=backend, fullgraph=True)(**kwargs)
    total_of(result).backward()
    torch._dynamo.reset()
    return caught["forward"], caught["backward"]


def total_of(result: Any) -> torch.Tensor:
    """A scalar that depends on every floating tensor of a result."""
    tensors = [t for t in torch.utils._pytree.tree_leaves(result) if isinstance(t, torch.Tensor)]
    return sum((t.float().square().sum() for t in tensors if t.requires_grad), torch.zeros(()))


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, torch.Tensor) else value
