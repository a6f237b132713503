"""The client's table of passes matches the server's registry."""

from __future__ import annotations

from lazyfx.answers.known_passes import (
    LAZYFX_PASSES,
    LAZYFX_PIPELINES,
    VALUE_PASSES,
    VALUE_PIPELINES,
    reads_values,
)
from lazyfx.shared.pass_specs import messages, normalize
from lazyfx.shared.pass_spelling import UNTIL_STABLE
from lazyfx_server.passes.builtin import BUILTIN_PASSES
from lazyfx_server.passes.named_pipelines import BUILTIN_PIPELINES


def test_the_tables_match_the_server() -> None:
    assert {p.name for p in BUILTIN_PASSES} | {UNTIL_STABLE} == LAZYFX_PASSES
    assert {p.name for p in BUILTIN_PASSES if p.needs_values} == VALUE_PASSES
    assert set(BUILTIN_PIPELINES) == LAZYFX_PIPELINES
    reading = {
        name for name, spelling in BUILTIN_PIPELINES.items()
        if reads_values(messages(normalize(spelling)))
    }  # fmt: skip
    assert reading == VALUE_PIPELINES
