"""What a failed call to the upstream means for those that are still asked."""

from __future__ import annotations

import pytest

from lazyfx.errors import UnavailableError
from lazyfx_server.compiling.forwarding.answers import meaning_of
from lazyfx_server.compiling.forwarding.upstream_calls import UpstreamFailureError


@pytest.mark.parametrize(
    ("retry_after", "outcome"),
    [pytest.param(2.0, "failed", id="it answers"), pytest.param(None, "unreachable", id="silent")],
)
def test_an_upstream_that_refuses_one_compile_for_now_is_not_away(
    retry_after: float | None, outcome: str
) -> None:
    error = UnavailableError("no memory is left", code="UNAVAILABLE", retry_after=retry_after)
    meaning = meaning_of(error, forwards_callers=True)
    assert isinstance(meaning, UpstreamFailureError)
    assert (meaning.outcome, meaning.pause) == (outcome, 0.0)
