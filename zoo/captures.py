"""Ways to capture a model as torch.fx graphs, each graph with inputs to call it with."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import default_partition
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

Example = Mapping[str, Any]


@dataclass(frozen=True)
class Capture:
    """A captured graph and inputs to call it with.

    Attributes:
        label: Which graph of the capture this is.
        module: The graph.
        args: Positional arguments of one call.
        kwargs: Keyword arguments of the same call.
        differentiable: Whether autograd can differentiate the graph; it cannot, where the
            graph holds its own backward.
    """

    label: str
    module: GraphModule
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    differentiable: bool = True


def symbolic(model: nn.Module, example: Example) -> list[Capture]:
    """`torch.fx.symbolic_trace` of one call with the arguments of the example."""
    with torch.no_grad():
        module = torch.fx.symbolic_trace(_CALLS[len(example)](model, list(example)))
    return [Capture("symbolic", module, tuple(example.values()))]


class _Call(nn.Module):
    """A call by keyword: symbolic tracing sees only as many arguments as are given."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self._keywords = names

    def call(self, *values: Any) -> Any:
        output = self.model(**dict(zip(self._keywords, values, strict=True)))
        return dict(output) if isinstance(output, Mapping) else output


class _Call1(_Call):
    def forward(self, a: Any) -> Any:
        return self.call(a)


class _Call2(_Call):
    def forward(self, a: Any, b: Any) -> Any:
        return self.call(a, b)


class _Call3(_Call):
    def forward(self, a: Any, b: Any, c: Any) -> Any:
        return self.call(a, b, c)


_CALLS = {1: _Call1, 2: _Call2, 3: _Call3}


def export(model: nn.Module, example: Example) -> list[Capture]:
    """`torch.export.export`, as a module with its parameters."""
    program = torch.export.export(model, (), kwargs=dict(example), strict=False)
    return [Capture("export", program.module(check_guards=False), (), dict(example))]


def dynamo(model: nn.Module, example: Example) -> list[Capture]:
    """What dynamo hands to a backend, sizes fixed."""
    return _dynamo(model, example, dynamic=False)


def dynamic(model: nn.Module, example: Example) -> list[Capture]:
    """What dynamo hands to a backend, sizes symbolic."""
    return _dynamo(model, example, dynamic=True)


def _dynamo(model: nn.Module, example: Example, *, dynamic: bool) -> list[Capture]:
    found: list[Capture] = []

    def keep(module: GraphModule, _: list[Any]) -> Callable[..., Any]:
        seen = False

        def run(*args: Any) -> Any:
            nonlocal seen
            if not seen:
                found.append(Capture(f"dynamo {len(found)}", module, _copies(args)))
                seen = True
            return module.forward(*args)

        return run

    with _fresh_dynamo():
        torch.compile(model, backend=keep, dynamic=dynamic)(**example)
    return found


def training(model: nn.Module, example: Example) -> list[Capture]:
    """What dynamo hands to AOTAutograd in training mode, and what comes of it."""
    return aot(model, example, keep_traced=True)


def aot(model: nn.Module, example: Example, *, keep_traced: bool = False) -> list[Capture]:
    """Joint, forward and backward graphs of AOTAutograd, the model in training mode.

    Args:
        model: The model.
        example: Keyword arguments of one call.
        keep_traced: Also keep the graphs of dynamo's that these come from.
    """
    found: list[Capture] = []
    # Set while a joint graph waits for its forward half to be compiled.
    joint: GraphModule | None = None

    def partition(module: GraphModule, inputs: Any, **options: Any) -> Any:
        nonlocal joint
        joint = module
        return default_partition(module, inputs, **options)

    def keep(kind: str) -> Callable[..., Any]:
        def compiler(module: GraphModule, _: list[Any]) -> Callable[..., Any]:
            nonlocal joint
            whole, joint = joint, None
            seen = False

            def run(args: list[Any]) -> Any:
                nonlocal seen
                if not seen:
                    seen = True
                    label = f"{kind} {len(found)}"
                    copies = _copies(args)
                    found.append(Capture(label, module, copies, differentiable=False))
                    if whole is not None:
                        found.append(_joint(whole, module, copies))
                result = module.forward(*args)
                args.clear()
                return result

            run._boxed_call = True  # type: ignore[attr-defined]
            return run

        return compiler

    backend = aot_autograd(
        fw_compiler=keep("forward"), bw_compiler=keep("backward"), partition_fn=partition
    )

    def compile_traced(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        compiled, seen = backend(module, inputs), False

        def run(*args: Any) -> Any:
            nonlocal seen
            if not seen:
                found.append(Capture(f"dynamo {len(found)}", module, _copies(args)))
                seen = True
            return compiled(*args)

        return run

    model.train()
    try:
        with _fresh_dynamo():
            compiler = compile_traced if keep_traced else backend
            output = torch.compile(model, backend=compiler, dynamic=False)(**example)
            _loss(output).backward()
    finally:
        model.eval()
        model.zero_grad(set_to_none=True)
    return found


def _joint(joint: GraphModule, forward: GraphModule, args: tuple[Any, ...]) -> Capture:
    """A joint graph with the inputs of its forward graph and made-up gradients."""
    places = [node for node in joint.graph.nodes if node.op == "placeholder"]
    names = [node.name for node in forward.graph.nodes if node.op == "placeholder"]
    known = dict(zip(names, args, strict=True))
    tangents = [node for node in places if node.name.startswith("tangents")]
    primals = [
        known[node.name] if node.name in known else _like(node.meta["val"])
        for node in places[: len(places) - len(tangents)]
    ]
    gradients = [_like(node.meta["val"]) for node in tangents]
    return Capture("joint", joint, (primals, gradients), differentiable=False)


def _like(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    made = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype)
    return made.normal_() if value.is_floating_point() else made.zero_()


def _loss(output: Any) -> Tensor:
    floats = [
        leaf
        for leaf in tree_leaves(output)
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.requires_grad
    ]
    return torch.stack([leaf.float().mean() for leaf in floats]).sum()


def _copies(args: Any) -> tuple[Any, ...]:
    """Inputs as they are before the graph may write to them; parameters stay what they are."""
    return tuple(
        a.detach().clone() if isinstance(a, Tensor) and not isinstance(a, nn.Parameter) else a
        for a in args
    )


@contextmanager
def _fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    try:
        yield
    finally:
        torch._dynamo.reset()


WAYS: dict[str, Callable[[nn.Module, Example], list[Capture]]] = {
    "symbolic": symbolic,
    "export": export,
    "dynamo": dynamo,
    "dynamic": dynamic,
    "aot": training,
}
