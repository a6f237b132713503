"""Saved graphs of real architectures compute what they computed, in a process with torch alone."""

from __future__ import annotations

import pytest
from elsewhere import loader

from conformance.saved.trying import findings

# With a format that refuses none of them.
SAMPLE = [
    ("zoo gpt2 dynamo", "package"),
    ("zoo bert aot", "pickle"),
    ("zoo resnet export", "pickle"),
]


@pytest.mark.parametrize(("name", "kind"), SAMPLE)
def test_a_sample_of_architectures(name: str, kind: str) -> None:
    with loader() as processes:
        found = [*findings(name, processes, (kind,))]
    assert {each.outcome for each in found} == {"same"}, found
