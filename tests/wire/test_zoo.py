"""A sample of the zoo: one of each kind, each in the captures that suit it (`make zoo` runs all)."""

from __future__ import annotations

import pytest

import zoo
from zoo.run import run

SAMPLE = {
    "bert": ["export", "aot"],
    "deberta": ["dynamo"],
    "gpt2": ["dynamic"],
    "t5": ["dynamo"],
    "mixtral": ["export"],
    "mamba": ["dynamo"],
    "swin": ["export"],
    "whisper": ["export"],
    "clip": ["dynamic"],
    "wav2vec2": ["dynamo"],
}


@pytest.mark.parametrize("name", SAMPLE)
def test_what_is_captured_of_a_real_model_comes_through(name: str) -> None:
    for way, cell in run(zoo.ARCHITECTURES[name], SAMPLE[name]).items():
        assert cell.came_through, f"{way}: {cell}"


def test_the_zoo_is_large_and_of_every_kind() -> None:
    assert len(zoo.ARCHITECTURES) >= 40
    kinds = {entry.kind for entry in zoo.ARCHITECTURES.values()}
    assert {"text encoder", "text decoder", "encoder-decoder", "mixture of experts",
            "state space", "vision", "audio", "vision and text"} <= kinds  # fmt: skip
