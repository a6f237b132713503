"""Rewrites are decoded once and shared by jobs, which is safe only while nothing changes them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from passes.running import assert_same, run
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.passes import Pass, PassContext, PassError, PassResult
from lazyfx_server.passes.builtin.fusing.replace_pattern import ReplacePattern
from lazyfx_server.passes.rewrites import RewriteReader
from lazyfx_server.settings.limits import GraphLimits


class Careless(Pass):
    """A pass that may do anything to the patterns that it is given."""

    name: ClassVar[str] = "careless"

    def run(self, module: GraphModule, context: PassContext) -> PassResult:
        """Changes nothing of the module."""
        return PassResult(module, False)


def message(graph: Callable[..., Any] | nn.Module) -> Any:
    return wire.encode(symbolic_trace(graph)).message()


def spec(*pairs: tuple[Any, Any], name: str = "replace_pattern") -> list[pb.PassSpec]:
    rewrites = [
        pb.Rewrite(pattern=message(one), replacement=message(other)) for one, other in pairs
    ]
    return [pb.PassSpec(name=name, rewrites=rewrites)]


def sum_of_squares(a: Any, b: Any) -> Any:
    return torch.relu(a * a + b * b)


def other_sum(a: Any, b: Any) -> Any:
    return torch.clamp(a.square() + b.square(), min=0)


def test_equal_rewrites_are_decoded_once() -> None:
    reader, specs = RewriteReader(), spec((sum_of_squares, other_sum))
    first = reader.read(specs, [ReplacePattern()])
    again = reader.read(spec((sum_of_squares, other_sum)), [ReplacePattern()])
    assert first[0][0][0] is again[0][0][0]
    assert first[0][0][1] is again[0][0][1]


def test_names_make_another_graph() -> None:
    reader = RewriteReader()
    renamed = spec((sum_of_squares, other_sum))
    pattern = renamed[0].rewrites[0].pattern
    pattern.presentation.graphs[0].stems[0] = "renamed"
    first = reader.read(spec((sum_of_squares, other_sum)), [ReplacePattern()])
    second = reader.read(renamed, [ReplacePattern()])
    assert first[0][0][0] is not second[0][0][0]
    assert "renamed" in [node.name for node in second[0][0][0].graph.nodes]


def test_a_pass_that_does_not_say_that_it_only_reads_gets_its_own() -> None:
    reader, specs = RewriteReader(), spec((sum_of_squares, other_sum))
    shared = reader.read(specs, [ReplacePattern()])
    own = [reader.read(specs, [Careless()]) for _ in range(2)]
    assert own[0][0][0][0] is not own[1][0][0][0]
    assert own[0][0][0][0] is not shared[0][0][0]


def test_graphs_with_attributes_are_not_shared() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Buffer(torch.ones(2))

        def forward(self, a: Any, b: Any) -> Any:
            return a * self.scale + b

    reader, specs = RewriteReader(), spec((lambda a, b: a + b, Scaled()))
    found = [reader.read(specs, [ReplacePattern()])[0][0] for _ in range(2)]
    assert found[0][0] is found[1][0]
    assert found[0][1] is not found[1][1]


def test_only_so_many_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfx_server.passes.rewrites._MOST_KEPT", 2)
    reader = RewriteReader()
    specs = spec((sum_of_squares, other_sum))
    first = reader.read(specs, [ReplacePattern()])
    reader.read(spec((lambda a: torch.sin(a), lambda a: torch.cos(a))), [ReplacePattern()])
    assert reader.read(specs, [ReplacePattern()])[0][0][0] is not first[0][0][0]


def test_the_limit_holds_for_what_is_known_already() -> None:
    reader, specs = RewriteReader(), spec((sum_of_squares, other_sum))
    reader.read(specs, [ReplacePattern()])
    with pytest.raises(PassError, match="max_nodes"):
        reader.read(specs, [ReplacePattern()], GraphLimits(max_nodes=2))


def test_replace_pattern_leaves_its_rewrites_as_they_are() -> None:
    def model(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x * x + y * y) + torch.relu(y * y + x * x).sin()

    reader, specs = (
        RewriteReader(),
        spec((sum_of_squares, other_sum), (lambda a: torch.sin(a), lambda a: torch.tan(a))),
    )
    before = symbolic_trace(model)
    results = []
    for _ in range(3):
        rewrites = reader.read(specs, [ReplacePattern()])[0]
        looks = [[str(graph.graph) for graph in rewrite[:2]] for rewrite in rewrites]
        ran = run(symbolic_trace(model), ReplacePattern(), rewrites=list(rewrites))
        assert ran.changed
        assert_same(before, ran.module, torch.randn(3), torch.randn(3))
        assert [[str(graph.graph) for graph in rewrite[:2]] for rewrite in rewrites] == looks
        for rewrite, sent in zip(rewrites, specs[0].rewrites, strict=True):
            for graph, theirs in zip(rewrite[:2], (sent.pattern, sent.replacement), strict=True):
                graph.graph.lint()
                assert wire.encode(graph).body == theirs.body
        results.append(wire.digest(ran.module))
    assert len(set(results)) == 1
