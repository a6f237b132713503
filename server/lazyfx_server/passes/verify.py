"""Compares the results of a graph before and after a pass, on random inputs.

Nothing from the caller is needed: inputs are generated from the metadata, and tensors without
values are random too, the same before and after; those that share memory in the caller's process
share memory here. The graph runs node by node, so no code is
generated for it. Operators that may not run on real values (`passes/analysis/evaluation`) end the
verification.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_leaves, tree_map

from lazyfx.shared.wire.values.descriptions import materialize
from lazyfx_server.passes.analysis.evaluation import UnreviewedError, reviewed
from lazyfx_server.passes.analysis.fresh_threads import in_fresh_thread
from lazyfx_server.passes.analysis.output_counts import BoundedInterpreter
from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.verified_values import Copies, Values

_SEED = 20105257
_MAX_BYTES = 2 * 1024**3
_GRADIENT = "gradient"
# Marks an outcome in which a derivative is an operator that may not run here.
_NO_GRADIENTS = "gradients that are not computed"


@dataclass
class NumericVerifier:
    """Compares the module's results with those before.

    Attributes:
        max_bytes: Bound on the bytes of inputs and attributes together.
        passes: Passes that were compared.
        tensors: Tensors compared last.
        max_difference: The largest difference found.
    """

    max_bytes: int = _MAX_BYTES
    passes: int = 0
    tensors: int = 0
    max_difference: float = 0.0
    _inputs: list[Any] = field(default_factory=list)
    _values: Values = field(init=False)
    _last: dict[str, torch.Tensor] = field(default_factory=dict)

    def start(self, module: GraphModule) -> None:
        """Record the results of a module before the first pass.

        Raises:
            PassError: It cannot be run: an input has no shape (kind "precondition"), the
                tensors are too large (kind "limit"), or a node fails.
        """
        mode = FakeTensorMode()
        generator = torch.Generator().manual_seed(_SEED)
        self._inputs = [
            _input_for(node, mode, generator)
            for node in module.graph.nodes
            if node.op == "placeholder"
        ]
        self._values = Values(self.max_bytes)
        self._values.add(module, lambda like: _random(like, generator))
        size = _bytes([*self._inputs, *self._values.all()])
        if size > self.max_bytes:
            raise PassError(
                f"verify would create {size} bytes of tensors; the limit is "
                f"{self.max_bytes}; leave verify out",
                kind="limit",
                field="verify",
            )
        try:
            self._last = self._run(module)
        except Exception as error:
            raise PassError(
                f"verify cannot run the graph on random inputs: {_one_line(error)}",
                kind="precondition",
                field="verify",
            ) from error

    def check(self, module: GraphModule, pass_: Pass) -> None:
        """Compare a module's results with the previous ones, and record them.

        Raises:
            PassError: Its results differ, or it cannot be run any more (kind "precondition").
        """
        try:
            found = self._run(module)
        except Exception as error:
            raise PassError(
                f"verify: the graph does not run after the pass: {_one_line(error)}",
                kind="precondition",
            ) from error
        self.passes += 1
        self.tensors = len(self._last)
        unknown = _NO_GRADIENTS in self._last or _NO_GRADIENTS in found
        for name, expected in self._last.items():
            if unknown and name.startswith(_GRADIENT):
                continue
            difference = _difference(expected, found.get(name))
            if not difference <= pass_.tolerance:
                raise PassError(
                    f"verify: the pass changed {name}: it differs by {difference:.3g} of its "
                    f"largest value, more than the allowed {pass_.tolerance:g}; remove the pass",
                    kind="precondition",
                )
            self.max_difference = max(self.max_difference, difference)
        self._last = found

    def _run(self, module: GraphModule) -> dict[str, torch.Tensor]:
        return in_fresh_thread(lambda: _outcome(module, self._inputs, self._values))


class _Run(BoundedInterpreter):
    """Runs a graph with other attributes than the module's own; writes only affect copies."""

    def __init__(self, module: GraphModule, values: Values, copies: Copies) -> None:
        super().__init__(module, garbage_collect_values=True)
        self._values = values
        self._copies = copies

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return self._concrete(value) if isinstance(value, torch.Tensor) else value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        called = self.fetch_attr(target)
        if isinstance(called, GraphModule):
            return _Run(called, self._values, self._copies).run(*args)
        tensors = {
            name: self._concrete(tensor)
            for name, tensor in (*called.named_parameters(), *called.named_buffers())
        }
        return torch.func.functional_call(called, tensors, args, dict(kwargs))

    def _concrete(self, tensor: torch.Tensor) -> torch.Tensor:
        return self._copies.of(self._values.of(tensor))


def _outcome(module: GraphModule, inputs: list[Any], values: Values) -> dict[str, torch.Tensor]:
    """Outputs, tensors that may have been written to, and gradients, by their names in messages."""
    torch.manual_seed(_SEED)
    copies = Copies(values)
    args = [copies.of(v) if isinstance(v, torch.Tensor) else v for v in inputs]
    with reviewed():
        result = _Run(module, values, copies).run(*args)
    outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)]
    found = {f"output {i}": tensor for i, tensor in enumerate(outputs)}
    given = [v for v in inputs if isinstance(v, torch.Tensor)]
    found |= {f"input {i} afterwards": copies.of(v) for i, v in enumerate(given)}
    found |= {f"attribute {i} afterwards": copies.of(v) for i, v in enumerate(values.all())}
    sources = [*given, *values.all()]
    try:
        gradients = _gradients(outputs, copies, sources)
    except UnreviewedError:
        gradients = []
        found[_NO_GRADIENTS] = torch.zeros(())
    found |= {f"{_GRADIENT} {i}": g for i, g in enumerate(gradients)}
    return {name: tensor.detach() for name, tensor in found.items()}


def _gradients(
    outputs: list[torch.Tensor], copies: Copies, sources: list[torch.Tensor]
) -> list[torch.Tensor]:
    leaves = copies.leaves(sources)
    differentiable = [t for t in outputs if t.requires_grad and t.is_floating_point()]
    if not leaves or not differentiable:
        return []
    total = torch.stack([t.float().square().sum() for t in differentiable]).sum()
    try:
        with reviewed():
            found = torch.autograd.grad(total, leaves, allow_unused=True)
    except UnreviewedError:
        raise
    except RuntimeError:  # backward graphs call operators that have no derivative
        return []
    return [torch.zeros(()) if gradient is None else gradient for gradient in found]


def _input_for(node: Node, mode: FakeTensorMode, generator: torch.Generator) -> Any:
    known = materialize(node, mode)
    if known is None:
        known = node.meta.get("example_value")
    if known is None:
        raise PassError(
            "verify creates random inputs from their shapes, and this input has none",
            kind="precondition",
            field="verify",
            node=node.name,
        )

    def make(leaf: Any) -> Any:
        if isinstance(leaf, torch.Tensor):
            return _random(leaf, generator).requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.SymInt | torch.SymFloat | torch.SymBool):
            return leaf.node.hint
        return leaf

    return tree_map(make, known)


def _random(like: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Values that models accept: small matrices, positive vectors, valid indices."""
    shape = [int(size) for size in like.shape]
    if like.dtype.is_floating_point or like.dtype.is_complex:
        if len(shape) >= 2:
            base = torch.randn(shape, generator=generator) / max(1, shape[-1]) ** 0.5
        else:
            base = torch.rand(shape, generator=generator) + 0.5
    else:
        base = torch.randint(0, 2, shape, generator=generator)
    device = like.device if like.device.type != "meta" else torch.device("cpu")
    made = torch.empty_strided(shape, [int(s) for s in like.stride()], dtype=like.dtype)
    made.copy_(base)
    if device.type == "cpu":
        return made.detach()
    try:
        return made.to(device).detach()
    except (AssertionError, AttributeError, ImportError, RuntimeError) as error:
        raise PassError(
            f"verify runs the graph, which needs {device}, and this server does not have that "
            f"device ({_one_line(error)}); leave verify out",
            kind="precondition",
            field="verify",
        ) from error


def _difference(expected: torch.Tensor, found: torch.Tensor | None) -> float:
    """The largest difference, relative to the largest value; infinite if the kinds differ."""
    if found is None or expected.shape != found.shape or expected.dtype != found.dtype:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(expected, found) else float("inf")
    one, two = expected.double(), found.double()
    finite = one.isfinite()
    if not torch.equal(finite, two.isfinite()) or not finite.any():
        return 0.0 if torch.equal(finite, two.isfinite()) else float("inf")
    scale = max(1.0, float(one[finite].abs().max()))
    return float((one[finite] - two[finite]).abs().max()) / scale


def _bytes(values: Iterable[Any]) -> int:
    tensors = (leaf for leaf in tree_leaves(list(values)) if isinstance(leaf, torch.Tensor))
    return sum(t.numel() * t.element_size() for t in tensors)


def _one_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
