"""Ways to capture a model as fx graphs, each with the flat inputs of the capture."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule


@dataclass(frozen=True)
class Capture:
    """A captured graph and inputs to call it with."""

    label: str
    module: GraphModule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def symbolic(model: nn.Module, example: Mapping[str, Tensor]) -> list[Capture]:
    names = list(example)
    return [
        Capture("symbolic", torch.fx.symbolic_trace(model), tuple(example[n] for n in names), {})
    ]


def exported(
    model: nn.Module, example: Mapping[str, Tensor], dynamic: bool = False
) -> list[Capture]:
    shapes: Any = None
    if dynamic:
        shapes = {
            name: dict.fromkeys(range(min(2, t.ndim)), torch.export.Dim.AUTO)
            for name, t in example.items()
        }
    with torch.no_grad():
        program = torch.export.export(
            model, (), kwargs=dict(example), dynamic_shapes=shapes, strict=False
        )
    return [Capture("export", program.module(check_guards=False), (), dict(example))]


def dynamo(model: nn.Module, example: Mapping[str, Tensor], dynamic: bool = False) -> list[Capture]:
    found: list[Capture] = []

    def keep(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        def run(*args: Any) -> Any:
            found.append(Capture(f"dynamo{len(found)}", module, args, {}))
            return module.forward(*args)

        return run

    torch._dynamo.reset()
    torch.compile(model, backend=keep, dynamic=dynamic)(**example)
    return found


def aot(model: nn.Module, example: Mapping[str, Tensor], dynamic: bool = False) -> list[Capture]:
    """Forward and backward graphs of AOTAutograd."""
    from torch._dynamo.backends.common import aot_autograd

    found: list[Capture] = []

    def keep(kind: str) -> Callable[..., Any]:
        def compiler(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
            def run(args: list[Any]) -> Any:
                copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
                found.append(Capture(f"{kind}{len(found)}", module, tuple(copies), {}))
                result = module.forward(*args)
                args.clear()
                return result

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    torch._dynamo.reset()
    output = torch.compile(model, backend=backend, dynamic=dynamic)(**example)
    first = output if isinstance(output, Tensor) else output[0]
    first.float().sum().backward()
    return found
