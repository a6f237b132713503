"""Real models, through every capture of torch, to bytes and back."""

from __future__ import annotations

import captures
import models
import pytest
from checks import assert_round_trip

STATIC = ["gpt2", "bert", "t5", "llama", "resnet"]
WAYS = ["exported", "dynamo", "aot"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", STATIC)
def test_models_come_back(name: str, way: str) -> None:
    found = getattr(captures, way)(*getattr(models, name)(**small(name)))
    assert found
    for capture in found:
        assert_round_trip(capture)


@pytest.mark.parametrize(
    ("name", "way"),
    [("gpt2", "exported"), ("t5", "dynamo"), ("bert", "aot"), ("resnet", "exported")],
)
def test_models_with_dynamic_shapes_come_back(name: str, way: str) -> None:
    found = getattr(captures, way)(*getattr(models, name)(**small(name)), dynamic=True)
    for capture in found:
        assert_round_trip(capture)


def test_a_symbolic_trace_comes_back_with_its_leaf_modules() -> None:
    (capture,) = captures.symbolic(*models.resnet50())
    encoded = assert_round_trip(capture)
    assert encoded.nodes == 177


def small(name: str) -> dict[str, int]:
    return {} if name == "resnet" else {"layers": 1}
