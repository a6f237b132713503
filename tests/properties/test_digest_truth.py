"""The digest says of ten thousand graphs, edited and disguised, what the oracle says."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import Choices, LazyModule, edit, make
from material import DISGUISED, PLAIN
from meaning import meaning

from lazyfx.shared import wire

# Graphs that hypothesis makes (each comes plain, disguised and edited), and graphs out of noise,
# which are larger; different computations that must have been met when all are done.
_ALL = (3_500, 2_800, 10_000)
_SAMPLE = (500, 400, 1_200)
_HERE = Path(__file__).resolve().parent

# What was met so far, both ways: no digest has two meanings, no meaning has two digests.
_MEANINGS: dict[bytes, tuple[Any, ...]] = {}
_DIGESTS: dict[tuple[Any, ...], bytes] = {}


def assert_agrees(module: Any, material: Any) -> bytes:
    """The digest of a graph; it and what the graph means have met nothing but each other."""
    digest = wire.encode(module).digest
    means = meaning(module, material)
    assert _MEANINGS.setdefault(digest, means) == means, "a false hit"
    assert _DIGESTS.setdefault(means, digest) == digest, "a needless miss"
    return digest


def check(graph: bytes, changes: bytes) -> None:
    """Look at a graph plain, disguised, read back, and after each of some changes."""
    module = make(graph, PLAIN)
    digest = assert_agrees(module, PLAIN)
    # Names, device indices, order of keywords, metadata: another graph to look at.
    assert wire.encode(make(graph, DISGUISED)).digest == digest
    # What was read back is the graph that was written.
    encoded = wire.encode(module)
    decoded = wire.decode(encoded.body, encoded.presentation, module_class=LazyModule)
    assert wire.encode(decoded).body == encoded.body
    # One thing is changed: the oracle says whether that is another computation.
    for start in range(0, len(changes), 8):
        edit(module, Choices(changes[start : start + 8]), PLAIN)
        assert_agrees(module, PLAIN)


@given(graph=st.binary(min_size=20, max_size=80), change=st.binary(min_size=8, max_size=8))
def check_examples(graph: bytes, change: bytes) -> None:
    check(graph, change)


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("examples", "noise", "different"),
    [
        pytest.param(*_SAMPLE, id="sample", marks=pytest.mark.long),
        pytest.param(*_ALL, id="all", marks=pytest.mark.slow),
    ],
)
def test_the_digest_is_true(examples: int, noise: int, different: int) -> None:
    _MEANINGS.clear()
    _DIGESTS.clear()
    settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow],
    )(check_examples)()
    for number in range(noise):
        drawn = hashlib.shake_128(str(number).encode()).digest(114)
        check(drawn[:90], drawn[90:])
    assert len(_MEANINGS) == len(_DIGESTS) >= different


def digest_of_many() -> str:
    """One digest of the digests of some graphs, for another process to compare."""
    together = hashlib.sha256()
    for i in range(300):
        data = hashlib.shake_128(str(i).encode()).digest(60)
        together.update(wire.encode(make(data, PLAIN if i % 2 else DISGUISED)).digest)
    return together.hexdigest()


def test_digests_do_not_depend_on_process_or_hash_seed() -> None:
    script = "import test_digest_truth; print(test_digest_truth.digest_of_many())"
    path = os.pathsep.join([str(_HERE), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        env={**os.environ, "PYTHONPATH": path, "PYTHONHASHSEED": "4711"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip().splitlines()[-1] == digest_of_many()
