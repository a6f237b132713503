"""What a leaf module holds may also be used by itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from checks import decode_bound
from graphs import LazyModule
from torch import nn
from torch.fx import Graph
from torch.nn.utils import parametrizations

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared import wire


def using(leaf: nn.Module, uses: list[tuple[str, str]]) -> torch.fx.GraphModule:
    """A graph that reads (get_attr) tensors within `leaf`, and calls it and its parts."""
    root = nn.Module()
    root.leaf = leaf
    graph = Graph()
    value = graph.placeholder("x")
    for op, path in uses:
        if op == "call_module":
            value = graph.call_module(path, (value,))
        else:
            scale = graph.call_function(torch.mean, (graph.get_attr(path),))
            value = graph.call_function(torch.mul, (value, scale))
    graph.output(value)
    return LazyModule(root, graph)


SHARED: dict[str, tuple[Callable[[], nn.Module], list[tuple[str, str]]]] = {
    "a parametrized weight": (
        lambda: parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1), dim=2),
        [("get_attr", "leaf.parametrizations.weight.original1"), ("call_module", "leaf")],
    ),
    "a weight": (
        lambda: nn.Linear(4, 4), [("get_attr", "leaf.weight"), ("call_module", "leaf")]
    ),
    "a buffer": (
        lambda: nn.BatchNorm1d(4), [("get_attr", "leaf.running_var"), ("call_module", "leaf")]
    ),
    "a part": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8),
        [("call_module", "leaf.norm1"), ("get_attr", "leaf.norm1.weight"),
         ("call_module", "leaf"), ("call_module", "leaf.norm2")],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("turn", [1, -1])
def test_what_a_leaf_module_holds_may_be_used_by_itself(name: str, turn: int) -> None:
    make_leaf, uses = SHARED[name]
    module = using(make_leaf().eval(), uses[::turn])
    encoded = wire.encode(module)
    assert wire.encode(wire.decode(encoded.body)).body == encoded.body
    named = wire.decode(encoded.body, encoded.presentation)
    assert wire.encode(named).body == encoded.body
    rebuilt = decode_bound(encoded)
    again = wire.encode(rebuilt)
    assert again.body == encoded.body
    assert again.presentation.graphs == encoded.presentation.graphs
    names = [set(dict(m.named_parameters())) for m in (named, rebuilt, module)]
    assert names[0] == names[1] == names[2]
    x = torch.randn(3, 4, 4) if isinstance(module.leaf, nn.Conv1d) else torch.randn(3, 4)
    ours, theirs = rebuilt(x), module(x)
    torch.testing.assert_close(ours, theirs)
    tensors = list(module.parameters())
    gradients = [
        torch.autograd.grad(y.sin().sum(), tensors, allow_unused=True) for y in (ours, theirs)
    ]
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("turn", [1, -1])
def test_a_tensor_that_is_computed_at_each_read_is_refused(turn: int) -> None:
    leaf = parametrizations.weight_norm(nn.Conv1d(4, 4, 3, padding=1))
    uses = [("get_attr", "leaf.weight"), ("call_module", "leaf")]
    with pytest.raises(UnsupportedGraphError, match=r"leaf_weight.*'leaf\.weight'") as caught:
        wire.encode(using(leaf, uses[::turn]))
    assert "remove_parametrizations" in caught.value.remedy


def test_two_leaf_modules_of_one_path_are_refused() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8)
    other = nn.TransformerEncoderLayer(4, 2, 8)
    encoded = wire.encode(using(layer, [("call_module", "leaf"), ("call_module", "leaf.norm1")]))
    paths = list(encoded.presentation.graphs[0].attribute_paths)
    tensors = {"leaf.norm1.weight": other.norm1.weight, "leaf.norm1.bias": other.norm1.bias}
    own = range(1 + max(i for i, path in enumerate(paths) if path == "leaf.norm1"), len(paths))
    with pytest.raises(DecodeError, match=r"two attributes have the path 'leaf\.norm1'"):
        wire.decode(
            encoded.body,
            encoded.presentation,
            bind=lambda graph, i, _: tensors[paths[i]] if i in own
            else encoded.attributes[graph][i],
        )  # fmt: skip
