"""Collectives: a group is a role on the wire and a name in each caller's process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import captures
import pytest
import torch
import torch.distributed as dist
from graphs import LazyModule
from torch import nn
from torch.distributed import _functional_collectives as collectives
from torch.fx import Graph, GraphModule

from lazyfx.errors import DecodeError, UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.wire.presentation import provenance, restore_names
from lazyfx.v1 import graph_pb2 as pb

OPERATORS = torch.ops._c10d_functional


@pytest.fixture
def rank() -> Iterator[None]:
    """Rank 1 of four in a process group that communicates with no one."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", rank=1, world_size=4, store=FakeStore())
    yield
    dist.destroy_process_group()


def parallel(first: str, second: str, device: str = "cuda:0") -> GraphModule:
    """All-reduce in one group, gather in another, on one device."""
    graph = Graph()
    x = graph.call_method("to", (graph.placeholder("x"), device))
    summed = graph.call_function(OPERATORS.all_reduce.default, (x, "sum", first))
    waited = graph.call_function(OPERATORS.wait_tensor.default, (summed,))
    gathered = graph.call_function(
        OPERATORS.all_gather_into_tensor, (waited,), {"group_size": 2, "group_name": second}
    )
    graph.output(graph.call_function(OPERATORS.wait_tensor.default, (gathered,)))
    return LazyModule(nn.Module(), graph)


def group_names(module: GraphModule) -> list[str]:
    found = [[*node.args, *node.kwargs.values()] for node in module.graph.nodes]
    texts = [a for row in found for a in row if isinstance(a, str)]
    return [a for a in texts if a != "sum" and not a.startswith("cuda")]


def test_ranks_of_other_groups_and_devices_share_a_digest() -> None:
    ours, theirs = parallel("1", "0"), parallel("tp:7", "mesh_dp", "cuda:3")
    assert wire.digest(ours) == wire.digest(theirs)
    assert wire.digest(ours) != wire.digest(parallel("1", "1"))


def test_each_caller_gets_their_own_names_back() -> None:
    encoded = wire.encode(parallel("tp:7", "mesh_dp", "cuda:3"))
    decoded = wire.decode(encoded.body, encoded.presentation)
    assert group_names(decoded) == ["tp:7", "mesh_dp"]
    assert "cuda:3" in next(n for n in decoded.graph.nodes if n.op == "call_method").args
    again = wire.encode(decoded)
    assert again.body == encoded.body
    assert again.presentation == encoded.presentation
    assert wire.encode(wire.decode(encoded.body)).body == encoded.body


def test_names_find_their_groups_after_passes() -> None:
    encoded = wire.encode(parallel("tp", "dp"))
    module = wire.decode(encoded.body)
    reduce = next(n for n in module.graph.nodes if n.target is OPERATORS.all_reduce.default)
    reduce.next.replace_all_uses_with(reduce.args[0])
    module.graph.erase_node(reduce.next)
    module.graph.erase_node(reduce)
    changed = wire.encode(module)
    compiled = pb.CompiledGraph(
        graph=changed.message(), provenance=provenance(encoded.body, changed)
    )
    shown = restore_names(compiled, encoded.presentation)
    assert group_names(wire.decode(changed.body, shown)) == ["dp"]


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"], ["a", "b", "c"], ["a", "b\n"]])
def test_names_that_do_not_fit_are_refused(names: list[str]) -> None:
    encoded = wire.encode(parallel("1", "0"))
    encoded.presentation.process_groups[:] = names
    with pytest.raises(DecodeError, match="process_groups"):
        wire.decode(encoded.body, encoded.presentation)


def test_a_group_name_that_source_cannot_hold_is_refused() -> None:
    with pytest.raises(UnsupportedGraphError, match="process group name") as caught:
        wire.encode(parallel("one\n", "0"))
    assert caught.value.node == "all_reduce_default"


def reduce_and_gather(x: torch.Tensor, group: Any) -> torch.Tensor:
    y = collectives.all_reduce(x.sin(), "sum", group)
    z = collectives.all_gather_tensor(y, 0, dist.group.WORLD)
    w = collectives.reduce_scatter_tensor(z, "sum", 0, group).clone()
    dist.all_reduce(w, group=group)
    return w


@pytest.mark.usefixtures("rank")
def test_captures_of_ranks_in_different_groups_are_equal() -> None:
    found = []
    for ranks in ([0, 1], [1, 2]):
        group = dist.new_group(ranks)

        class Ranked(nn.Module):
            def forward(self, x: torch.Tensor, group: Any = group) -> torch.Tensor:
                return reduce_and_gather(x, group)

        example = {"x": torch.ones(4, requires_grad=True)}
        graphs = [*captures.dynamo(Ranked(), example), *captures.aot(Ranked(), example)]
        assert len(graphs) == 3
        found.append([wire.encode(capture.module) for capture in graphs])
        for encoded in found[-1]:
            assert wire.encode(wire.decode(encoded.body)).body == encoded.body
    assert [e.body for e in found[0]] == [e.body for e in found[1]]
    assert found[0][0].presentation.process_groups != found[1][0].presentation.process_groups
