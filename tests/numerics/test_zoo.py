"""What the wire carries the server accepts, and gives back as the same computation."""

from __future__ import annotations

import pytest

import lazyfx
import zoo
from zoo.captures import WAYS
from zoo.check import compare

pytestmark = pytest.mark.long

PASSES = [
    "dead_code_elimination",
    "common_subexpression_elimination",
    "constant_fold",
    "shape_propagation",
    "normalize_arguments",
]
SAMPLE = [
    ("clip", "export"),
    ("deberta", "dynamo"),
    ("t5", "dynamic"),
    ("wav2vec2", "aot"),
]


@pytest.mark.parametrize(("name", "way"), SAMPLE)
def test_a_real_model_through_the_server(client: lazyfx.Client, name: str, way: str) -> None:
    captured = WAYS[way](*zoo.ARCHITECTURES[name].build())
    assert captured
    for capture in captured:
        assert compare(capture, client.compile(capture.module, passes=PASSES)) > 0
