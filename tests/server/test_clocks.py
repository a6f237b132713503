"""Signatures, and a clock that has been a year ahead or behind."""

from __future__ import annotations

import hashlib
import time

import pytest

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.signing import Builder, KeyRing, Signer, StatementFacts

DAY, YEAR = 86_400.0, 366 * 86_400.0
LIFETIME = 30 * DAY
FACTS = StatementFacts(bytes(32), pb.ARTIFACT_KIND_CODE, bytes(32), "pipeline")
DIGEST = graph_pb2.Digest(sha256=hashlib.sha256(b"artifact").digest(), size_bytes=8)


class Clock:
    """The clock of a machine, which may jump."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def signer(clock: Clock) -> Signer:
    return Signer(KeyRing(None), Builder("server", "1", "2", "3"), LIFETIME, clock)


def _statement(signature: pb.ArtifactSignature | None) -> pb.ArtifactStatement:
    assert signature is not None
    return pb.ArtifactStatement.FromString(signature.statement)


def _is_accepted(statement: pb.ArtifactStatement, now: float) -> bool:
    """Whether a client with the right clock accepts it, for no longer than it should."""
    return (
        statement.created.ToSeconds() <= now + 1
        and now < statement.expires.ToSeconds() <= now + LIFETIME + 1
    )


@pytest.mark.parametrize("jump", [YEAR, -YEAR], ids=["ahead", "behind"])
def test_what_was_signed_with_a_wrong_clock_is_signed_again(
    signer: Signer, clock: Clock, jump: float
) -> None:
    right = clock.now
    clock.now = right + jump
    made = signer.sign(DIGEST, FACTS)
    clock.now = right
    renewed = signer.renewed(made, DIGEST, FACTS)
    assert _is_accepted(_statement(renewed), right)
    assert _is_accepted(_statement(signer.sign(DIGEST, FACTS)), right)


def test_what_was_renewed_with_a_wrong_clock_does_not_stay_valid(
    signer: Signer, clock: Clock
) -> None:
    right = clock.now
    made = signer.sign(DIGEST, FACTS)
    clock.now = right + YEAR
    renewed = signer.renewed(made, DIGEST, FACTS)
    assert _statement(renewed).expires.ToSeconds() > right + YEAR
    clock.now = right + 1
    assert renewed is not None
    again = signer.renewed(renewed, DIGEST, FACTS)
    assert _is_accepted(_statement(again), clock.now)


def test_clocks_that_differ_a_little_change_nothing(signer: Signer, clock: Clock) -> None:
    made = signer.sign(DIGEST, FACTS)
    for seconds in (-5.0, 0.0, 5.0, 10 * DAY):
        clock.now += seconds
        assert signer.renewed(made, DIGEST, FACTS) == made
