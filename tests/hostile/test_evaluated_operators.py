"""Random calls of every operator that may run on real values: no crash, no out-of-bounds memory.

Each operator is evaluated by the passes twice, in processes of its own, over memory that malloc
has filled with another byte each time. A process that dies has read or written outside of its
operands; results that differ hold what was in memory before.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hostile.evaluating import CONTROLS
from hostile.fitting_calls import CALLS
from hostile.wild_operators import operators

from lazyfx_server.passes.analysis.evaluation.composite_operators import is_reviewed_composite
from lazyfx_server.passes.analysis.evaluation.reviewed_operators import rule_of

_PROGRAM = Path(__file__).with_name("evaluating.py")
_SEED = 14
# glibc fills memory with these, also what it would give out again as it is.
_FILLS = (0x5A, 0xC3)
_TOGETHER = 8
_REVIEWED = [str(o) for o in operators() if rule_of(o) is not None or is_reviewed_composite(o)]


def _groups(names: list[str]) -> list[list[str]]:
    return [names[i : i + _TOGETHER] for i in range(0, len(names), _TOGETHER)]


def _outcomes(groups: list[list[str]], count: int) -> Iterator[list[dict[str, Any]]]:
    """What happened with the same operators over each fill."""
    results = [tempfile.TemporaryFile("w+") for _ in _FILLS]  # noqa: SIM115 - closed below
    programs = [
        subprocess.Popen(
            [sys.executable, str(_PROGRAM), str(_SEED), str(count)],
            stdin=subprocess.PIPE,
            stdout=result,
            stderr=subprocess.DEVNULL,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(_PROGRAM.parents[1]),
                "GLIBC_TUNABLES": f"glibc.malloc.tcache_count=0:glibc.malloc.perturb={fill}",
            },
        )
        for fill, result in zip(_FILLS, results, strict=True)
    ]
    try:
        for program in programs:
            assert program.stdin is not None
            json.dump(groups, program.stdin)
            program.stdin.close()
        assert [program.wait() for program in programs] == [0, 0]
        for result in results:
            result.seek(0)
        steps = [[json.loads(line) for line in result] for result in results]
    finally:
        for program in programs:
            program.kill()
        for result in results:
            result.close()
    by_names = [{tuple(each["operators"]): each for each in each_outcome} for each_outcome in steps]
    for names in dict.fromkeys(name for each in by_names for name in each):
        yield [each[names] for each in by_names if names in each]


def _found(outcomes: Iterable[list[dict[str, Any]]]) -> tuple[list[str], int]:
    """Crashes and differences, and how many calls were computed."""
    found, computed = [], 0
    for both in outcomes:
        if len(both) != len(_FILLS):
            found.append(f"{both[0]['operators']} died over one fill only")
            continue
        found += [f"{o['operators']}: {o['ended']} in {o['last']}" for o in both if o["ended"]]
        one, two = (each["outcomes"] for each in both)
        found += [
            f"{both[0]['operators']}: {step} differs: {one[step]} and {two[step]}"
            for step in one.keys() & two.keys()
            if one[step] != two[step]
        ]
        computed += sum(steps.startswith("ran") for steps in one.values())
    return found, computed


@pytest.mark.long
def test_a_sample_of_wild_calls() -> None:
    """Next to calls that were not reviewed: the sweep must see these."""
    fitting = [name for name in _REVIEWED if name.removeprefix("aten.") in CALLS]
    sample = _groups([*fitting[::12], *_REVIEWED[::120]])
    outcomes = list(_outcomes([*sample, *([name] for name in CONTROLS)], 4))
    wild, controls = outcomes[: -len(CONTROLS)], outcomes[-len(CONTROLS) :]
    found, computed = _found(wild)
    assert found == []
    assert computed > 15
    found, _ = _found(controls)
    assert any("reads" in line and "differs" in line for line in found)
    assert sum("SIGSEGV" in line for line in found) == len(_FILLS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_wild_calls_of_every_reviewed_operator() -> None:
    found, computed = _found(_outcomes(_groups(_REVIEWED), 24))
    assert found == []
    assert computed > 5000
