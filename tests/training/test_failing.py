"""Graphs that neither side can compile are in the report."""

from __future__ import annotations

import pytest
import torch

import lazyfx


def forty_two(x: torch.Tensor) -> torch.Tensor:
    return x + 42


@pytest.mark.filterwarnings("ignore::lazyfx.FallbackWarning")
def test_a_graph_that_neither_side_can_compile() -> None:
    options = {"address": "127.0.0.1:1", "on_error": "local"}
    # Inductor of this process does not know it.
    unknown = torch._inductor.config.patch(cpu_backend="no such backend")
    with unknown, pytest.raises(Exception, match="no such backend"):
        torch.compile(forty_two, backend="lazyfx", options=options)(torch.ones(3))
    (graph,) = lazyfx.backend_report().graphs
    assert graph.outcome == "failed"
    assert "127.0.0.1:1" in graph.reason
    assert "no such backend" in graph.reason


def test_errors_are_raised_if_the_caller_wants_them() -> None:
    options = {"address": "127.0.0.1:1", "on_error": "raise"}
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match=r"127\.0\.0\.1:1"):
        torch.compile(forty_two, backend="lazyfx", options=options)(torch.ones(3))
    assert [graph.outcome for graph in lazyfx.backend_report().graphs] == ["failed"]
