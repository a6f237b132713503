"""What one step through a graph leaves behind: results, gradients, and what was written."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from lazyfx.shared import wire

# A gradient that is this much smaller than the largest of its step is rounding: the bias of a
# key, which softmax takes out again, has the gradient zero.
_NOTHING = 1e-3


@dataclass(frozen=True)
class Subject:
    """A graph as a worker has it, around copies of its caller's tensors.

    Attributes:
        module: The graph, flat: it takes the leaves of the arguments.
        tensors: The copies, in the order in which the graph holds them.
    """

    module: GraphModule
    tensors: tuple[Tensor, ...]


@dataclass(frozen=True)
class Left:
    """What a step left behind.

    Attributes:
        results: Tensors and numbers that the graph returned.
        gradients: Of inputs, then of the graph's tensors; None where there is none.
        state: The inputs and the graph's tensors after the step.
    """

    results: tuple[Any, ...]
    gradients: tuple[Tensor | None, ...]
    state: tuple[Tensor, ...]


def subject(encoded: wire.EncodedGraph) -> Subject:
    """Decodes a graph around fresh copies of its tensors."""
    copies: dict[int, Tensor] = {}

    def bind(graph: int, attribute: int, _: object) -> object:
        value = encoded.attributes[graph][attribute]
        if not isinstance(value, Tensor):
            return value
        if id(value) not in copies:
            copy = value.detach().clone().requires_grad_(value.requires_grad)
            is_parameter = isinstance(value, torch.nn.Parameter)
            copies[id(value)] = (
                torch.nn.Parameter(copy.detach(), value.requires_grad) if is_parameter else copy
            )
        return copies[id(value)]

    module = wire.decode(encoded.body, encoded.presentation, bind=bind)
    return Subject(module, tuple(copies.values()))


def step(
    call: Callable[..., Any], arguments: Sequence[Any], tensors: Sequence[Tensor], *, train: bool
) -> Left:
    """Calls a graph once, and differentiates its results if it is to train.

    Args:
        call: Takes the arguments.
        arguments: Copied, because graphs may write to them.
        tensors: What the graph holds.
        train: Whether gradients are computed; they are those of a random sum of the results.
    """
    given = [_copy(argument) for argument in arguments]
    inputs = [leaf for leaf in tree_leaves(given) if isinstance(leaf, Tensor)]
    leaves = [t for t in (*inputs, *tensors) if t.requires_grad and t.is_leaf]
    # An input that requires grad may be written to, if it is no leaf of autograd's graph.
    torch.manual_seed(0)
    with torch.set_grad_enabled(train):
        results = tree_leaves(call(*given))
    gradients = _gradients(results, leaves) if train else []
    state = tuple(t.detach().clone() for t in (*inputs, *tensors))
    return Left(tuple(results), tuple(gradients), state)


Gradients = Literal["each", "together", "not"]


def difference(expected: Left, found: Left, *, gradients: Gradients = "each") -> tuple[float, str]:
    """The largest difference, relative to the largest value of its tensor, and where it is.

    Args:
        expected: A step.
        found: The same step another way.
        gradients: How gradients are compared: each tensor by its largest difference, all together
            by the length of their difference (relative to their own), or not.
    """
    if len(expected.results) != len(found.results):
        return float("inf"), "results"
    # Of a graph that holds its own backward, the results are gradients.
    least = 0.0 if expected.gradients else _NOTHING * _largest(expected.results)
    pairs = [("result", e, f, least) for e, f in zip(expected.results, found.results, strict=True)]
    pairs += [("state", e, f, 0.0) for e, f in zip(expected.state, found.state, strict=True)]
    if gradients == "each":
        least = _NOTHING * _largest(expected.gradients)
        both = zip(expected.gradients, found.gradients, strict=True)
        pairs += [("gradient", e, f, least) for e, f in both]
    worst, where = 0.0, ""
    for place, (kind, one, other, least) in enumerate(pairs):
        here = _difference(one, other, least)
        if not here <= worst:
            worst, where = here, f"{kind} {place}"
    if gradients == "together":
        here = _apart(expected.gradients, found.gradients)
        if not here <= worst:
            worst, where = here, "gradients together"
    return worst, where


def _apart(expected: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> float:
    """The length of the difference of two lists of tensors, relative to the first's."""
    gap = length = 0.0
    for one, other in zip(expected, found, strict=True):
        if (one is None) != (other is None):
            return float("inf")
        if one is not None and other is not None:
            gap += float((one.double() - other.double()).square().sum())
            length += float(one.double().square().sum())
    return math.sqrt(gap) / max(math.sqrt(length), 1e-12)


def _largest(values: Sequence[Any]) -> float:
    floats = [v.detach() for v in values if isinstance(v, Tensor) and v.is_floating_point()]
    finite = [v[v.isfinite()] for v in floats]
    return max((float(v.abs().max()) for v in finite if v.numel()), default=0.0)


def _difference(expected: Any, found: Any, least: float) -> float:
    if expected is None or found is None:
        zero = expected if found is None else found
        return 0.0 if zero is None or not zero.any() else float("inf")
    if not isinstance(expected, Tensor):
        return 0.0 if expected == found else float("inf")
    if not isinstance(found, Tensor) or (expected.shape, expected.dtype) != (
        found.shape,
        found.dtype,
    ):
        return float("inf")
    if torch.equal(expected, found):
        return 0.0
    if not (expected.is_floating_point() or expected.is_complex()):
        return float("inf")
    one, two = expected.detach().double(), found.detach().double()
    if expected.is_complex():
        one, two = torch.view_as_real(expected.detach()), torch.view_as_real(found.detach())
    same = (one == two) | (one.isnan() & two.isnan())
    finite = one.isfinite() & two.isfinite()
    if not bool((same | finite).all()):
        return float("inf")
    gap = torch.where(same, 0.0, one - two).abs().max()
    scale = one[finite].abs().max() if bool(finite.any()) else one.new_ones(())
    return float(gap / max(float(scale), least, 1e-12))


def _copy(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(_copy, argument))
    if not isinstance(argument, Tensor):
        return argument
    copy = argument.detach().clone()
    return copy.requires_grad_() if argument.requires_grad else copy


def _gradients(results: Sequence[Any], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    roots = [
        r
        for r in results
        if isinstance(r, Tensor) and r.requires_grad and (r.is_floating_point() or r.is_complex())
    ]
    if not roots or not leaves:
        return [None] * len(leaves)
    torch.manual_seed(1)
    # Not ones: the sum of what a normalization returns is constant, and its gradient rounding.
    # By shape: randn_like draws in the order of memory, which a pass may change inside.
    weights = [torch.randn(r.shape, dtype=r.dtype, device=r.device) for r in roots]
    return list(torch.autograd.grad(roots, leaves, weights, allow_unused=True))
