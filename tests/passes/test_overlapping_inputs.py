"""Inputs in one memory: whatever the passes, a write to one is seen through the others."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable

import pytest
import torch
from passes.library import LIBRARY
from passes.overlapping import HOW, MODELS, outcome, symbolic
from passes.running import run
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lazyfx_server.passes import Registry
from lazyfx_server.passes.analysis.functionalizing import ordered_writes
from lazyfx_server.passes.analysis.functionalizing.ordered_writes import OrderedWrites

_registry = Registry()

PIPELINES = [
    *(name for name in LIBRARY if name != "analyze"),
    "common_subexpression_elimination",
    "functionalize,common_subexpression_elimination,no_op_elimination,dead_code_elimination",
    "decompose,common_subexpression_elimination,sink_views,reinplace,dead_code_elimination",
]


@pytest.mark.parametrize("make", MODELS)
def test_any_pass_keeps_what_two_calls_do(make: Callable[[], nn.Module]) -> None:
    wrong, expected = [], {how: outcome(make(), how) for how in HOW}
    for pipeline in PIPELINES:
        passes = [LIBRARY.get(name) or _registry.create(name) for name in pipeline.split(",")]
        ran = run(symbolic(make()), *passes)
        for how in HOW if ran.changed else ():
            found = outcome(copy.deepcopy(ran.module), how)
            try:
                torch.testing.assert_close(found, expected[how], rtol=0.01, atol=0.01)
            except AssertionError as error:
                wrong.append(f"{pipeline}, {how}: {str(error).splitlines()[0]}")
        if pipeline in ("functionalize", "decompose"):
            assert ran.changed, f"{pipeline} left the model alone: nothing was compared"
    assert not wrong


@pytest.mark.parametrize("name", ["functionalize", "decompose"])
def test_one_call_that_writes_two_inputs_is_left_alone(name: str) -> None:
    """Which of them its kernel writes first, if they share memory, only the kernel knows."""

    class Extremes(nn.Module):
        def forward(self, a: Tensor, b: Tensor) -> Tensor:
            torch.aminmax(a * 1, out=(a[0], b[0]))
            return a + b

    ran = run(symbolic(Extremes()), _registry.create(name))
    assert not ran.changed
    assert "writes two tensors that may share memory" in ran.note


@pytest.mark.parametrize(
    ("places", "calls"),
    [((0, 1, 2), 1), ((2, 0), 1), ((0, 1, 0), 3), ((2, -1), 2)],
)
def test_a_write_of_new_tensors_of_a_list(places: tuple[int, ...], calls: int) -> None:
    """Stays one call if they are different ones."""
    graph = torch.fx.Graph()
    given = [graph.placeholder(name) for name in "abc"]
    with FakeTensorMode():
        for node in given:
            node.meta["val"] = torch.empty(4)
    made = graph.call_function(torch.ops.aten._foreach_mul.Scalar, (given, 2.0))
    parts = [graph.call_function(operator.getitem, (made, place)) for place in range(3)]
    last = graph.call_function(operator.getitem, (made, -1))
    chosen = [last if place == -1 else parts[place] for place in places]
    graph.call_function(torch.ops.aten._foreach_add_.Scalar, (chosen, 1.0))
    graph.output(tuple(parts))
    module = torch.fx.GraphModule({}, graph)
    ran = run(module, _registry.create("functionalize"))
    assert ran.changed, ran.note
    added = ran.module.graph.find_nodes(
        op="call_function", target=torch.ops.aten._foreach_add.Scalar
    )
    assert len(added) == calls
    tensors = [torch.full((4,), float(n)) for n in range(3)]
    torch.testing.assert_close(ran.module(*tensors), module(*tensors), rtol=0, atol=0)


def test_writes_to_many_attributes_cost_as_much_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Memory:
        looks = 0

        def __hash__(self) -> int:
            Memory.looks += 1
            return id(self)

    def looks(count: int) -> int:
        root, graph, memories = nn.Module(), torch.fx.Graph(), {}
        for place in range(count):
            root.register_buffer(f"b{place}", torch.ones(1))
            memories[f"b{place}"] = Memory()
        found = {id(value): memories[name] for name, value in root.named_buffers()}
        monkeypatch.setattr(ordered_writes, "memory_of", lambda t: found[id(t)])
        monkeypatch.setattr(ordered_writes, "memories_in", lambda t: [found[id(t)]])
        buffers = [graph.get_attr(name) for name in memories]
        for _ in range(2):
            graph.call_function(torch.ops.aten._foreach_add_.Scalar, (buffers, 1.0))
        graph.owning_module = root
        writes = OrderedWrites(graph, [], {name: (t, t) for name, t in root.named_buffers()})
        Memory.looks = 0
        for node in graph.nodes:
            writes.before(node)
            assert not writes.writes_one_by_one(node)
            writes.after(node)
        return Memory.looks

    assert looks(40) < 3 * looks(20)
