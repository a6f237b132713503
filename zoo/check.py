"""Checks that a capture survives the wire: the same bytes again, and the same computation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._pytree import tree_leaves

from lazyfx.shared import wire
from lazyfx_server.security.checked_graph import check
from lazyfx_server.settings.limits import GraphLimits
from zoo.captures import Capture


class BrokenRoundTripError(AssertionError):
    """A graph changed in a round trip."""


_MAX_NODES = 1_000_000


@dataclass(frozen=True)
class Passage:
    """A capture that passed.

    Attributes:
        nodes: Nodes of all its graphs.
        body_bytes: Size of the canonical body.
        compared: Tensors that were compared: outputs and gradients.
    """

    nodes: int
    body_bytes: int
    compared: int


def pass_through(capture: Capture) -> Passage:
    """Encode, decode, encode, and compare what both graphs compute.

    Raises:
        UnsupportedGraphError: The wire refuses the graph.
        BrokenRoundTripError: The bytes, the names, the results or the gradients differ.
    """
    module = capture.module
    encoded = wire.encode(module)
    # The server's own checks must not refuse graphs of the zoo.
    check(
        encoded.body,
        limits=GraphLimits(max_nodes=_MAX_NODES),
        presentation=encoded.presentation,
        module_class=_LazyGraphModule,
    )
    anonymous = wire.decode(encoded.body, module_class=_LazyGraphModule)
    if wire.encode(anonymous).body != encoded.body:
        raise BrokenRoundTripError("a different body after a round trip without names")
    rebound = decode_bound(encoded)
    again = wire.encode(rebound)
    if again.body != encoded.body:
        raise BrokenRoundTripError("another body after a round trip")
    if again.presentation.graphs != encoded.presentation.graphs:
        raise BrokenRoundTripError("different names after a round trip")
    compared = _compare(capture, rebound)
    nodes = sum(len(m.graph.nodes) for m in module.modules() if isinstance(m, GraphModule))
    return Passage(nodes, len(encoded.body), compared)


def decode_bound(encoded: wire.EncodedGraph, **options: Any) -> GraphModule:
    """The graph with its caller's names and tensors."""
    return wire.decode(
        encoded.body,
        encoded.presentation,
        bind=lambda graph, attribute, _: encoded.attributes[graph][attribute],
        **options,
    )


def _compare(capture: Capture, rebound: GraphModule) -> int:
    """Compare with a decoded graph, which is flat: it takes the leaves of the arguments."""
    return compare(capture, rebound, tree_leaves((capture.args, dict(capture.kwargs))))


def compare(capture: Capture, other: Callable[..., Any], args: Sequence[Any] | None = None) -> int:
    """Call a capture and something that should compute the same, and compare.

    Args:
        capture: The graph, and what it is called with.
        other: Called in the same way, or with `args` if they are given.
        args: Positional arguments for `other`.

    Returns:
        How many tensors were compared: outputs, and gradients where outputs have any.

    Raises:
        BrokenRoundTripError: They differ.
    """
    theirs = _run(capture.module, capture.args, capture.kwargs, capture)
    if args is None:
        ours = _run(other, capture.args, capture.kwargs, capture)
    else:
        ours = _run(other, args, {}, capture)
    if len(ours) != len(theirs):
        raise BrokenRoundTripError(f"{len(ours)} results instead of {len(theirs)}")
    compared = 0
    for i, (actual, expected) in enumerate(zip(ours, theirs, strict=True)):
        if isinstance(expected, Tensor):
            try:
                torch.testing.assert_close(actual, expected, equal_nan=True)
            except AssertionError as error:
                raise BrokenRoundTripError(f"result {i}: {error}") from error
            compared += 1
        elif actual != expected:
            raise BrokenRoundTripError(f"result {i}: {actual!r} instead of {expected!r}")
    return compared


def _run(call: Callable[..., Any], args: Sequence[Any], kwargs: Any, capture: Capture) -> list[Any]:
    """Outputs, and behind them the gradients of inputs and parameters.

    Both graphs share the tensors of the captured module; what a call writes to them is
    taken back.
    """
    owner = capture.module
    state = {name: t.detach().clone() for name, t in owner.named_buffers()}
    # Graphs may write to their inputs.
    copies: list[Any] = [_copy(a) for a in args]
    kwargs = {name: _copy(a) for name, a in kwargs.items()}
    leaves = [
        t
        for t in (*tree_leaves((copies, kwargs)), *owner.parameters())
        if isinstance(t, Tensor) and t.requires_grad and t.is_leaf
    ]
    torch.manual_seed(0)
    try:
        with torch.set_grad_enabled(capture.differentiable):
            results = tree_leaves(call(*copies, **kwargs))
        gradients = _gradients(results, leaves) if capture.differentiable else []
        return [*results, *gradients]
    finally:
        for name, tensor in owner.named_buffers():
            tensor.detach().copy_(state[name])


def _copy(argument: Any) -> Any:
    if isinstance(argument, (list, tuple)):
        return type(argument)(map(_copy, argument))
    if not isinstance(argument, Tensor):
        return argument
    copy = argument.detach().clone()
    return copy.requires_grad_() if argument.requires_grad else copy


def _gradients(results: Sequence[Any], leaves: Sequence[Tensor]) -> list[Any]:
    roots = [
        r
        for r in results
        if isinstance(r, Tensor) and r.requires_grad and (r.is_floating_point() or r.is_complex())
    ]
    if not roots or not leaves:
        return []
    torch.manual_seed(0)
    return list(
        torch.autograd.grad(roots, leaves, [torch.ones_like(r) for r in roots], allow_unused=True)
    )
