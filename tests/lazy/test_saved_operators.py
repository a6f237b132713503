"""Saved graphs of torch's own operators compute what they computed, or are refused."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest
from elsewhere import loader

from conformance.cases import operators
from conformance.saved.loading import Loader
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


def test_a_process_that_loads_files_is_replaced_if_it_has_died(tmp_path: Path) -> None:
    program = "import sys; [print('no such file', flush=True) for _ in sys.stdin]"
    with Loader(interpreter=[sys.executable, "-c", program, "--"]) as loader:
        assert loader.call(tmp_path / "file.py") == "no such file"
        (process,) = loader._processes.values()
        process.kill()
        assert loader.call(tmp_path / "file.py") == "the process that loads files has ended"
        assert loader.call(tmp_path / "file.py") == "no such file"
