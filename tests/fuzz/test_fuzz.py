"""A bounded run of the fuzzer; docs/fuzzing.md records a long one."""

from __future__ import annotations

import json
from pathlib import Path

import nursery
import pytest

pytestmark = pytest.mark.long

FUZZER = Path(__file__).resolve().parent / "fuzzing.py"


@pytest.mark.parametrize("seed", [1001, 1002])
def test_mutated_graphs_are_refused_with_our_own_errors_or_are_what_they_say(seed: int) -> None:
    command = ["-W", "ignore", str(FUZZER), "--cases", "4000", "--seed", str(seed)]
    done = nursery.run("torch", command)
    assert done.returncode == 0, done.stderr[-4000:]
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["cases"] == 4000
    assert report["failures"] == 0
    # The mutations get past the first checks, and through all of them too.
    assert report["accepted"] > 200
    assert len(report["fields"]) > 8


def test_what_is_taken_ends_in_no_internal_error() -> None:
    """Through passes and every artifact; `fuzzing_jobs.py` runs longer."""
    jobs = FUZZER.with_name("fuzzing_jobs.py")
    command = ["-W", "ignore", str(jobs), "--cases", "100", "--seed", "2"]
    done = nursery.run("torch", command)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout.splitlines()[-1])["faults"] == 0
