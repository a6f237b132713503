"""A sample of the graphs that `make remote-share` counts."""

from __future__ import annotations

import warnings

import pytest
from servers import RunningServer

from conformance.remote.trying import BAD, Counting, findings

pytestmark = pytest.mark.long

pytest.importorskip("expecttest", reason="torch's tables need it")

_ENTRIES = ("op cdist", "module nn_CircularPad2d", "export cond_operands")


@pytest.mark.parametrize("name", _ENTRIES)
def test_graphs_are_remote_and_compute_the_same(server: RunningServer, name: str) -> None:
    counting = Counting(server.address, ("train", "infer_dynamic"), 1, "eager", 60.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = list(findings(name, counting))
    assert [each for each in found if each.outcome in BAD] == []
    graphs = [reason for each in found for reason in each.graphs]
    assert len(graphs) >= 2
    assert set(graphs) == {""}
