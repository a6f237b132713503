"""Every leaf class of torch.nn travels with its configuration and comes back."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks import decode_bound
from graphs import LazyModule
from torch import nn
from torch.fx import Graph
from torch.nn.utils import parametrizations, parametrize

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.wire.leaf_modules import leaf_classes
from lazyfx.v1 import graph_pb2 as pb

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
# They are made of other modules.
PARTS: dict[str, Callable[[], nn.Module]] = {
    "Transformer": lambda: nn.Transformer(8, 2, 2, 1, 16, activation=nn.functional.gelu),
    "TransformerDecoder": lambda: nn.TransformerDecoder(
        nn.TransformerDecoderLayer(8, 2, 16), 2, nn.LayerNorm(8, eps=1e-4)
    ),
    "TransformerEncoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, norm_first=True),
        2,
        enable_nested_tensor=False,
    ),
    "TripletMarginWithDistanceLoss": lambda: nn.TripletMarginWithDistanceLoss(
        distance_function=nn.PairwiseDistance(p=1.0)
    ),
}
# torch 2.11 does not have it.
if hasattr(nn, "LinearCrossEntropyLoss"):
    PARTS["LinearCrossEntropyLoss"] = lambda: nn.LinearCrossEntropyLoss(4, 5, bias=True)


def make(name: str) -> nn.Module:
    cls = getattr(nn, name)
    if name in PARTS:
        return PARTS[name]()
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


@pytest.mark.parametrize("name", sorted(leaf_classes.classes()))
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


def custom_encoder() -> nn.Module:
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 16), 1)
    return nn.Transformer(8, 2, 1, 1, 16, custom_encoder=encoder)


@pytest.mark.parametrize(
    "leaf",
    [
        custom_encoder,
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16), 1, nn.Sequential(nn.LayerNorm(8))
        ),
        lambda: nn.TripletMarginWithDistanceLoss(distance_function=lambda x, y: (x - y).sum()),
        lambda: parametrize.register_parametrization(nn.Linear(4, 4), "weight", nn.ReLU()),
        lambda: parametrizations.orthogonal(nn.Linear(4, 4)),
    ],
)
def test_parts_that_are_the_callers_own_are_refused(leaf: Callable[[], nn.Module]) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(calling(leaf()))
    assert caught.value.node == "leaf"
    assert caught.value.remedy


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch lacks it")
def test_options_of_plain_values_come_back_as_the_object_that_they_were() -> None:
    options = nn.LinearCrossEntropyOptions(batch_chunk_size=2, chunking_method=None)
    encoded = wire.encode(calling(nn.LinearCrossEntropyLoss(4, 5, options=options)))
    assert wire.encode(wire.decode(encoded.body)).body == encoded.body
    assert decode_bound(encoded).leaf.options == options
    without = {"allow_retain_graph": False}
    given = {"in_features": 4, "num_classes": 5, "options": without}
    with pytest.raises(DecodeError, match="has other fields"):
        leaf_classes.prototype("LinearCrossEntropyLoss", given)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch lacks it")
def test_an_option_that_is_another_object_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        wire.encode(calling(nn.LinearCrossEntropyLoss(4, 5, options=object())))
    assert caught.value.node == "leaf"
    assert caught.value.remedy


PARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight_norm": lambda: parametrizations.weight_norm(nn.Conv1d(4, 4, 3, groups=2), dim=2),
    "spectral_norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 6), n_power_iterations=2),
    "spectral_norm of a bias": lambda: parametrizations.spectral_norm(nn.Linear(4, 6), "bias"),
}


@pytest.mark.parametrize("name", PARAMETRIZED)
def test_a_parametrized_leaf_module_comes_back(name: str) -> None:
    leaf = PARAMETRIZED[name]().eval()
    encoded = wire.encode(calling(leaf))
    assert wire.encode(wire.decode(encoded.body)).body == encoded.body
    rebuilt = decode_bound(encoded)
    assert rebuilt.leaf.state_dict().keys() == leaf.state_dict().keys()
    x = torch.randn(2, 4, 5) if isinstance(leaf, nn.Conv1d) else torch.randn(2, 4)
    ours, theirs = rebuilt(x), leaf(x)
    torch.testing.assert_close(ours, theirs)
    tensors = list(leaf.parameters())
    gradients = [torch.autograd.grad(y.sum(), tensors) for y in (ours, theirs)]
    torch.testing.assert_close(*gradients)


def test_the_arguments_of_a_parametrization_count() -> None:
    digests = {
        wire.digest(calling(parametrizations.weight_norm(nn.Conv1d(4, 4, 4), dim=dim)))
        for dim in (0, 1, 2)
    }
    assert len(digests | {wire.digest(calling(nn.Conv1d(4, 4, 4)))}) == 4


@pytest.mark.parametrize(
    "given",
    [
        {"weight": {"type": "orthogonal", "options": {}}},
        {"weight": {"type": "weight_norm", "options": {"dim": 0, "more": 1}}},
        {"weight": {"type": "weight_norm"}},
        {"nowhere": {"type": "weight_norm", "options": {"dim": 0}}},
        {"weight": {"type": "spectral_norm",
                    "options": {"dim": 0, "eps": 1e-12, "n_power_iterations": 10**9}}},
    ],
)  # fmt: skip
def test_parametrizations_outside_of_the_table_are_refused(given: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"module\.options"):
        leaf_classes.prototype(
            "Linear", {"in_features": 2, "out_features": 2, "bias": True, "parametrizations": given}
        )


@pytest.mark.parametrize(
    "part",
    [
        {"type": "Linear", "options": {"in_features": 2, "out_features": 2}},
        {"type": "TransformerEncoderLayer", "options": {"d_model": {"type": "x", "options": {}}}},
        {"type": "TransformerEncoderLayer"},
        {"type": 1, "options": {}},
    ],
)
def test_parts_that_make_no_sense_are_refused(part: dict[str, Any]) -> None:
    with pytest.raises(DecodeError, match=r"module\.options"):
        leaf_classes.prototype("TransformerEncoder", {"encoder_layer": part, "num_layers": 1})


@pytest.mark.parametrize("name", PARTS)
def test_a_module_made_of_others_computes_the_same(name: str) -> None:
    leaf = PARTS[name]().eval()
    x = torch.randn(3, 2, 8)
    arguments = {
        "LinearCrossEntropyLoss": (torch.randn(3, 4), torch.tensor([0, 4, 2])),
        "TransformerEncoder": (x,),
        "TripletMarginWithDistanceLoss": (x, x + 1, x * 2),
    }.get(name, (x, x + 1))
    graph = Graph()
    places = [graph.placeholder(f"x{i}") for i in range(len(arguments))]
    graph.output(graph.call_module("leaf", tuple(places)))
    root = nn.Module()
    root.leaf = leaf
    rebuilt = decode_bound(wire.encode(LazyModule(root, graph)))
    torch.testing.assert_close(rebuilt(*arguments), leaf(*arguments))


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
            leaf_classes.prototype(name, {})


@pytest.mark.parametrize("options", [{}, {"affine": False}, {"bias": False}])
def test_an_option_that_a_torch_added_is_written_only_when_it_says_something(options) -> None:
    if "bias" in options and "bias" not in inspect.signature(nn.BatchNorm2d).parameters:
        pytest.skip("this torch has no such option")
    found = leaf_classes.options(nn.BatchNorm2d(2, **options))
    assert ("bias" in found) == ("bias" in options)
    # torch 2.11 has no such option at all.
    with pytest.raises(DecodeError, match=r"redundant option|takes no option 'bias'"):
        leaf_classes.prototype("BatchNorm2d", {"num_features": 2, "bias": True})


def test_options_are_spelled_as_they_are_read_back() -> None:
    encoded = wire.encode(calling(nn.Conv2d(2, 4, 3, bias=False)))
    spoils: dict[str, Callable[[Any], object]] = {
        "stride": lambda row: row.options.pop(),
        "bias": lambda row: setattr(row.options[0].value, "integer", 0),
        "kernel_size": lambda row: setattr(row.options[4].value, "integer", 3),
    }
    for option, spoil in spoils.items():
        body = pb.GraphBody.FromString(encoded.body)
        spoil(body.graphs[0].attributes[0].module)
        with pytest.raises(DecodeError, match=f"'{option}' is missing, or differs"):
            wire.decode(body.SerializeToString(deterministic=True))
