"""Every leaf class of torch.nn travels with its configuration and comes back."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from checks import decode_bound
from graphs import LazyModule
from torch import nn
from torch.fx import Graph

from lazyfx import wire
from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.wire import leaf_modules

# Arguments for whatever constructors ask for.
ARGUMENTS: dict[str, Any] = {
    "in_features": 8, "out_features": 6, "in_channels": 4, "out_channels": 8, "kernel_size": 3,
    "num_features": 4, "normalized_shape": (4,), "num_embeddings": 5, "embedding_dim": 3,
    "input_size": 4, "hidden_size": 5, "d_model": 8, "nhead": 2, "num_channels": 4,
    "num_groups": 2, "output_size": 2, "upscale_factor": 2, "downscale_factor": 2, "embed_dim": 8,
    "num_heads": 2, "in1_features": 3, "in2_features": 4, "padding": 1, "threshold": 0.1,
    "value": 2.0, "dim": 1, "size": 3, "n_classes": 20, "cutoffs": [5, 10], "groups": 2,
    "unflattened_size": (2, 2), "norm_type": 2,
}  # fmt: skip
# They hold modules or functions as arguments; traces go through them or are refused by name.
REFUSED = {
    "LinearCrossEntropyLoss",
    "Transformer",
    "TransformerDecoder",
    "TransformerEncoder",
    "TripletMarginWithDistanceLoss",
}


def make(name: str) -> nn.Module:
    cls = getattr(nn, name)
    parameters = inspect.signature(cls).parameters.values()
    needed = {p.name: ARGUMENTS[p.name] for p in parameters if p.default is p.empty
              and p.kind is p.POSITIONAL_OR_KEYWORD}  # fmt: skip
    if issubclass(cls, nn.RNNBase):
        needed = {"input_size": 4, "hidden_size": 5}
    if name.startswith("Fractional"):
        needed["output_size"] = 2
    return cls(**needed)


def calling(leaf: nn.Module) -> torch.fx.GraphModule:
    root = nn.Module()
    root.leaf = leaf
    graph = Graph()
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    return LazyModule(root, graph)


@pytest.mark.parametrize("name", sorted(set(leaf_modules.classes()) - REFUSED))
def test_a_leaf_module_comes_back(name: str) -> None:
    leaf = make(name).eval()
    module = calling(leaf)
    encoded = wire.encode(module)
    assert wire.encode(wire.decode(encoded.body)).body == encoded.body
    rebuilt = decode_bound(encoded).leaf
    assert type(rebuilt) is type(leaf)
    assert not rebuilt.training
    assert repr(rebuilt) == repr(leaf)
    ours, theirs = dict(rebuilt.named_parameters()), dict(leaf.named_parameters())
    assert ours.keys() == theirs.keys()
    assert all(ours[key] is theirs[key] for key in ours)


@pytest.mark.parametrize("name", sorted(REFUSED & set(leaf_modules.classes())))
def test_a_leaf_module_with_modules_as_arguments_is_refused(name: str) -> None:
    layer = nn.TransformerEncoderLayer(8, 2)
    decoder = nn.TransformerDecoderLayer(8, 2)
    leaf = {
        "LinearCrossEntropyLoss": lambda: nn.LinearCrossEntropyLoss(4, 4),
        "Transformer": lambda: nn.Transformer(8, 2, 1, 1, 8),
        "TransformerDecoder": lambda: nn.TransformerDecoder(decoder, 1),
        "TransformerEncoder": lambda: nn.TransformerEncoder(layer, 1, enable_nested_tensor=False),
        "TripletMarginWithDistanceLoss": nn.TripletMarginWithDistanceLoss,
    }[name]()
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(calling(leaf))
    assert caught.value.node == "leaf"
    assert caught.value.remedy


@pytest.mark.parametrize(
    "leaf",
    [
        nn.LSTM(4, 5, num_layers=2, bidirectional=True, proj_size=3),
        nn.RNN(4, 5, nonlinearity="relu"),
        nn.Conv2d(4, 8, 3, padding="same", padding_mode="reflect"),
        nn.MultiheadAttention(8, 2, kdim=4, vdim=6, add_bias_kv=True),
        nn.CrossEntropyLoss(weight=torch.ones(3)),
        nn.BatchNorm1d(4, affine=False, track_running_stats=False),
        nn.Embedding(5, 3, padding_idx=1, max_norm=2.0),
        nn.Upsample(scale_factor=2, mode="nearest"),
        nn.TransformerEncoderLayer(8, 2, 16, 0.3, norm_first=True, batch_first=True),
    ],
    ids=lambda leaf: type(leaf).__name__,
)
def test_unusual_options_come_back(leaf: nn.Module) -> None:
    encoded = wire.encode(calling(leaf))
    rebuilt = decode_bound(encoded)
    assert wire.encode(rebuilt).body == encoded.body
    assert repr(rebuilt.leaf) == repr(leaf)
    assert rebuilt.leaf.state_dict().keys() == leaf.state_dict().keys()


def test_a_leaf_module_computes_the_same() -> None:
    leaf = nn.LSTM(4, 5, num_layers=2, batch_first=True)
    x = torch.randn(2, 3, 4)
    rebuilt = decode_bound(wire.encode(calling(leaf)))
    torch.testing.assert_close(rebuilt(x), leaf(x))


def test_a_class_outside_of_the_table_is_refused() -> None:
    for name in ("Module", "Sequential", "ModuleList", "LazyLinear", "nowhere", "__class__"):
        with pytest.raises(DecodeError, match="not a leaf class"):
            leaf_modules.prototype(name, {})
