"""Our own hostile graphs, sent to a running server past the client's checks."""

from __future__ import annotations

from typing import Any

import more_cases
import pytest
import raw_graphs
from harness import Refusal
from test_corpus_graphs import _PASSES, _files, _variants
from watching import Watched

from lazyfx.v1 import compiler_pb2 as pb

_JOB_SECONDS = 20


@pytest.fixture(scope="module")
def watched(launch_for_file, tmp_path_factory):
    server = launch_for_file(
        "--workers", "1", "--job-timeout", str(_JOB_SECONDS), "--max-pass-seconds", "5",
        "--worker-memory-bytes", str(2**31),
    )  # fmt: skip
    return Watched.start(server, tmp_path_factory.mktemp("marker"))


def _outcomes(watched: Watched, payload: dict[str, Any]) -> list[pb.CompileResponse | Refusal]:
    graphs = _variants({"payload": payload, "class": "control"}, _files(watched))
    passes = _PASSES[payload["run"]]
    return [watched.ask(graph.serialized(), graph.names, *passes) for graph in graphs]


@pytest.mark.parametrize("case", more_cases.REFUSED)
def test_a_hostile_graph_is_refused(watched, case):
    entries = watched.entries()
    try:
        outcomes = _outcomes(watched, more_cases.REFUSED[case])
    except raw_graphs.Unsayable:
        return
    for outcome in outcomes:
        assert isinstance(outcome, Refusal), case
        assert outcome.code == "INVALID_ARGUMENT", outcome
        assert outcome.fields, outcome
    watched.check_unharmed()
    assert watched.entries() == entries


@pytest.mark.parametrize("case", more_cases.CONTAINED)
def test_a_bomb_goes_off_in_its_worker_or_not_at_all(watched, case):
    outcomes = _outcomes(watched, more_cases.CONTAINED[case])
    watched.check_unharmed()
    for outcome in outcomes:
        if isinstance(outcome, Refusal):
            assert outcome.code in (
                "INVALID_ARGUMENT", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"
            ), outcome  # fmt: skip
