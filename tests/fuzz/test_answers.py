"""Whatever a server sends, a client answers with an error of lazyfx or with a right result."""

from __future__ import annotations

import random

import pytest
from fuzz.answers import mutate, samples

from lazyfx.errors import LazyfxError

SAMPLES = samples()


def run(name: str, rounds: int, seed: int) -> dict[str, int]:
    """Read mutated answers; anything but an error of lazyfx comes out."""
    chance = random.Random(f"{name} {seed}")
    sample = SAMPLES[name]
    counts = {"read": 0, "refused": 0}
    for number in range(rounds):
        data = mutate(sample.data, chance)
        try:
            sample.read(data)
        except LazyfxError:
            counts["refused"] += 1
        except Exception as error:
            raise AssertionError(f"{name}, round {number}: {data!r}") from error
        else:
            counts["read"] += 1
    return counts


@pytest.mark.parametrize("name", [name for name in SAMPLES if name not in ("stream", "missing")])
def test_what_is_valid_is_read(name: str) -> None:
    SAMPLES[name].read(SAMPLES[name].data)


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.timeout(120)
def test_mutated_answers(name: str) -> None:
    counts = run(name, 300, seed=0)
    assert counts["refused"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 11))
@pytest.mark.parametrize("name", SAMPLES)
def test_many_mutated_answers(name: str, seed: int) -> None:
    run(name, 3000, seed)
