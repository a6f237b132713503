"""A sample of what `make zoo-passes` runs: every pass over real architectures, a step compared."""

from __future__ import annotations

import pytest

import zoo
from zoo.numerics import findings

pytestmark = pytest.mark.long

SAMPLE = {"bert": "export", "resnet": "train", "gpt2": "aot"}


@pytest.mark.parametrize("name", SAMPLE)
def test_every_pass_keeps_results_gradients_and_buffers(name: str) -> None:
    found = findings(zoo.ARCHITECTURES[name], SAMPLE[name])
    assert not [each for each in found if each.outcome in {"wrong", "no capture"}]
    assert len({each.name for each in found if each.outcome == "changed"}) >= 5


def test_draws_over_channels_last_values_are_the_same() -> None:
    """Segformer's head has dropout after a channels-last convolution."""
    found = findings(zoo.ARCHITECTURES["segformer"], "train", ["functionalize"])
    assert not [each for each in found if each.outcome == "wrong"]
    assert any(each.outcome == "changed" for each in found)


def test_a_graph_that_comes_out_as_it_was_is_not_touched() -> None:
    """Yolos' forward graph: traced again, it is the same, but for what is known of its values."""
    found = findings(zoo.ARCHITECTURES["yolos"], "aot", ["functionalize"])
    assert {each.outcome for each in found} <= {"same", "changed", "skipped"}
