"""Blocks of a graph become calls of one graph only if they are equal, and then compute the same."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from block_pairs import (
    DIFFERENT,
    EQUAL,
    OTHER_ORDER,
    UNSUITED,
    Pair,
    build,
    build_two_groups,
    real_inputs,
)
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule

from lazyfx.shared import wire
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.jobs.native.conditions import CannotCompile
from lazyfx_server.jobs.native.equal_blocks.outlining import call_equal_blocks_once
from lazyfx_server.jobs.native.equal_blocks.regions import name_regions
from lazyfx_server.jobs.native.making import make_artifact
from lazyfx_server.v1 import worker_pb2 as worker

_PAIRS = 200


def test_equal_blocks_become_calls_that_compute_the_same() -> None:
    for seed in range(6):
        module = build(OTHER_ORDER if seed % 3 == 0 else EQUAL, seed)
        whole, nodes = copy.deepcopy(module), len(module.graph.nodes)
        (found,) = call_equal_blocks_once(module)
        assert found.calls == 2
        assert len(module.graph.nodes) < nodes - found.nodes
        calls = module.graph.find_nodes(
            op="call_function", target=torch.ops.higher_order.invoke_subgraph
        )
        assert len({str(call.args[0]) for call in calls}) == 1
        given = real_inputs(module, seed)
        assert torch.equal(module(*given)[0], whole(*given)[0])


def test_a_group_that_reads_another_is_found_too() -> None:
    for seed in range(3):
        module = build_two_groups(seed)
        whole = copy.deepcopy(module)
        assert [group.calls >= 2 for group in call_equal_blocks_once(module)] == [True, True]
        given = real_inputs(module, seed)
        assert torch.equal(module(*given)[0], whole(*given)[0])


@pytest.mark.parametrize("enabled", [False, True])
def test_blocks_in_a_region_of_autocast_stay(enabled: bool) -> None:
    module = build(EQUAL, 1)
    nodes = [node for node in module.graph.nodes if node.op == "call_function"]
    with module.graph.inserting_before(nodes[0]):
        arguments = ("cpu", torch.bfloat16, enabled, None)
        entered = module.graph.call_function(torch.amp.autocast_mode._enter_autocast, arguments)
    with module.graph.inserting_after(nodes[-1]):
        module.graph.call_function(torch.amp.autocast_mode._exit_autocast, (entered,))
    assert len(call_equal_blocks_once(module)) == (0 if enabled else 1)


def test_what_was_recorded_of_values_in_between_does_not_count() -> None:
    module = build(DIFFERENT["size of an operand"], 1)
    with FakeTensorMode():
        other = torch.empty(6, 6)
    for node in module.graph.nodes:
        if node.op.startswith("call_"):
            node.meta["example_value"] = other
    assert call_equal_blocks_once(module) == []


@pytest.mark.parametrize("kind", [*DIFFERENT, *UNSUITED])
def test_nearly_equal_blocks_stay(kind: str) -> None:
    assert_stay(kind, range(1))


@pytest.mark.long
def test_none_of_200_nearly_equal_pairs_is_merged() -> None:
    for kind in DIFFERENT:
        assert_stay(kind, range(1, 2 + _PAIRS // len(DIFFERENT)))


def assert_stay(kind: str, seeds: range) -> None:
    pair = {**DIFFERENT, **UNSUITED}[kind]
    for seed in seeds:
        module = build(pair, seed)
        before = str(module.graph)
        assert call_equal_blocks_once(module) == []
        assert str(module.graph) == before
        if kind in DIFFERENT and pair.first and "write to an operand" not in kind:
            # It is the difference that keeps them apart.
            assert call_equal_blocks_once(build(Pair(pair.first, pair.first), seed))


def test_what_fails_for_another_reason_is_not_tried_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = worker.NativeJob(
        kind=pb.ARTIFACT_KIND_INDUCTOR,
        request=pb.NativeRequest(equal_blocks_once=True),
        progress=str(tmp_path / "progress"),
    )
    job.graph.graph.body = wire.encode(torch.fx.symbolic_trace(_BODIES["sine"])).body
    with pytest.raises(CannotCompile, match="no shape"):
        make_artifact(job)
    assert "compiled as a whole" not in caplog.text


def test_nested_graphs_are_one_for_torch_only_if_they_are() -> None:
    graph = Graph()
    x, wide = graph.placeholder("x"), graph.placeholder("wide")
    with FakeTensorMode():
        x.meta["example_value"], wide.meta["example_value"] = torch.ones(2), torch.ones(3)
    sine, cosine = graph.get_attr("sine"), graph.get_attr("cosine")
    calls = [
        graph.call_function(torch.ops.higher_order.invoke_subgraph, (body, "same", operand))
        for body, operand in ((sine, x), (sine, x), (cosine, x), (sine, wide))
    ]
    graph.output(tuple(calls))
    bodies = {name: torch.fx.symbolic_trace(f) for name, f in _BODIES.items()}
    name_regions(GraphModule(bodies, graph))
    first, second, other, wider = (call.args[1] for call in calls)
    assert first == second
    assert len({first, other, wider}) == 3


_BODIES: dict[str, Callable[[torch.Tensor], tuple[torch.Tensor]]] = {
    "sine": lambda x: (torch.sin(x),),
    "cosine": lambda x: (torch.cos(x),),
}
