"""Saved graphs of torch's own operators compute what they computed, or are refused."""

from __future__ import annotations

from collections import Counter

import pytest
from elsewhere import loader

from conformance.cases import operators
from conformance.saved.trying import BAD, findings

pytest.importorskip("expecttest", reason="torch's table of operators needs it")

# A sample for CI: these places of the table, and the formats that refuse none of them.
_EVERY = 40
_FORMATS = ("pickle", "package")


def test_a_sample_of_operators() -> None:
    with loader() as processes:
        found = [
            each
            for case in operators(3, _EVERY)
            for each in findings(case.name, processes, _FORMATS)
        ]
    assert [each for each in found if each.outcome in (*BAD, "refused")] == []
    counts = Counter(each.format for each in found if each.outcome == "same")
    assert min(counts[kind] for kind in _FORMATS) > 12
