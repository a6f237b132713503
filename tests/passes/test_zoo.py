"""A sample of what `make zoo-passes` runs: every pass over real architectures, a step compared."""

from __future__ import annotations

import pytest

import zoo
from zoo.numerics import findings

SAMPLE = {"bert": "export", "resnet": "train", "gpt2": "aot"}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_pass_keeps_results_gradients_and_buffers(name: str) -> None:
    found = findings(zoo.ARCHITECTURES[name], SAMPLE[name])
    assert not [each for each in found if each.outcome in {"wrong", "no capture"}]
    assert len({each.name for each in found if each.outcome == "changed"}) >= 5


def test_draws_over_channels_last_values_are_left_alone() -> None:
    """Segformer's head: functionalized, its dropout would drop other places."""
    found = findings(zoo.ARCHITECTURES["segformer"], "train", ["functionalize"])
    assert not [each for each in found if each.outcome == "wrong"]
    assert any("draws in an order" in each.note for each in found)
