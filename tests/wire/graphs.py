"""Graphs made up by hypothesis, and by hand."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from hypothesis import strategies as st
from torch.fx import Graph, GraphModule, Node

LITERALS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(width=64),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.sampled_from([torch.float32, torch.bfloat16, torch.int64, torch.bool]),
    st.sampled_from([torch.device("cpu"), torch.device("cuda"), torch.device("cuda", 1)]),
    st.sampled_from([torch.strided, torch.contiguous_format, torch.channels_last, ...]),
    st.complex_numbers(allow_nan=False),
    st.builds(torch.Size, st.lists(st.integers(0, 9), max_size=3)),
)
TARGETS = st.sampled_from(
    [
        torch.ops.aten.add.Tensor,
        torch.ops.aten.relu.default,
        torch.ops.aten.mul,
        torch.nn.functional.softmax,
        torch.cat,
        operator.getitem,
        math.sqrt,
        "view",
        "to",
    ]
)


def arguments(nodes: list[Node]) -> st.SearchStrategy[Any]:
    """Literals and earlier nodes, nested."""
    leaves = LITERALS if not nodes else st.one_of(LITERALS, st.sampled_from(nodes))
    keys = st.one_of(st.text("abc", max_size=2), st.integers(0, 9), st.booleans())
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.lists(inner, max_size=3).map(tuple),
            st.dictionaries(keys, inner, max_size=3),
            st.builds(slice, inner, inner, inner),
        ),
        max_leaves=6,
    )


@st.composite
def graphs(draw: st.DrawFn) -> GraphModule:
    """A graph that cannot be run, with every kind of argument."""
    graph = Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(0, 6))):
        target = draw(TARGETS)
        args = tuple(draw(st.lists(arguments(nodes), min_size=1, max_size=3)))
        kwargs = draw(st.dictionaries(st.sampled_from(["a", "b", "dim"]), arguments(nodes)))
        kind = "call_method" if isinstance(target, str) else "call_function"
        nodes.append(graph.create_node(kind, target, args, kwargs))
    graph.output(draw(arguments(nodes)))
    return LazyModule(torch.nn.Module(), graph)


# Code is of no interest here, and not all of these graphs have any.
LazyModule = torch.fx._lazy_graph_module._LazyGraphModule


def call(*args: Any, target: Any = torch.ops.aten.add.Tensor, **kwargs: Any) -> GraphModule:
    """One input x, and one call of `target`; the string "x" among the arguments is the input."""
    graph = Graph()
    x = graph.placeholder("x")
    place = {"x": x}
    args = tuple(place.get(a, a) if isinstance(a, str) else a for a in args)
    graph.output(graph.call_function(target, args, kwargs))
    return LazyModule(torch.nn.Module(), graph)
