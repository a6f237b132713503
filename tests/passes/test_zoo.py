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
