"""What every graph must do on the wire, for any capture of any model."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from captures import Capture
from torch import Tensor
from torch.fx import GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.utils._pytree import tree_leaves

from lazyfx.shared import wire


def assert_round_trip(capture: Capture) -> wire.EncodedGraph:
    """The bytes come back, under canonical and own names, and so does what it computes."""
    module = capture.module
    encoded = wire.encode(module)
    assert wire.encode(module).body == encoded.body
    wire.check_canonical(encoded.body)

    anonymous = wire.decode(encoded.body, module_class=_LazyGraphModule)
    assert wire.encode(anonymous).body == encoded.body
    assert [n.name for n in anonymous.graph.nodes] == [f"n{i}" for i in range(encoded.nodes)]

    rebound = decode_bound(encoded)
    again = wire.encode(rebound)
    assert again.body == encoded.body
    assert again.presentation.graphs == encoded.presentation.graphs
    assert [n.name for n in rebound.graph.nodes] == [n.name for n in module.graph.nodes]
    assert_same_results(capture, rebound)
    return encoded


def decode_bound(encoded: wire.EncodedGraph, **options: Any) -> GraphModule:
    """The graph with its caller's names and tensors."""
    return wire.decode(
        encoded.body,
        encoded.presentation,
        bind=lambda graph, attribute, _: encoded.attributes[graph][attribute],
        **options,
    )


def assert_same_results(capture: Capture, rebound: GraphModule) -> None:
    expected = _call(capture.module, capture.args, capture.kwargs)
    actual = _call(rebound, [*capture.args, *capture.kwargs.values()], {})
    assert len(actual) == len(expected)
    for ours, theirs in zip(actual, expected, strict=True):
        if isinstance(theirs, Tensor):
            torch.testing.assert_close(ours, theirs, equal_nan=True)
        else:
            assert ours == theirs


def _call(module: GraphModule, args: Iterable[Any], kwargs: Any) -> list[Any]:
    # Graphs may write to their inputs.
    copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
    torch.manual_seed(0)
    return tree_leaves(module(*copies, **kwargs))


@contextmanager
def created_publicly() -> Iterator[None]:
    """Decode as on a torch whose private names have moved."""
    decoder = sys.modules[wire.decode.__module__]
    with mock.patch.object(decoder, "supports_direct", return_value=False):
        yield
