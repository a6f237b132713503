"""What constant folding folds, what it leaves alone, and what it asks for."""

from typing import Any

import pytest
import torch
from passes.running import assert_same, decoded, run, targets
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx_server.passes import PassError, PassLimits, Registry
from lazyfx_server.passes.builtin.simplifying.constant_fold import ConstantFold

fold = ConstantFold()


def graph(build: Any, **attributes: Any) -> GraphModule:
    """A graph of one input x; `build(graph, x)` returns the result."""
    root = nn.Module()
    for name, value in attributes.items():
        setattr(root, name, value)
    made = torch.fx.Graph()
    x = made.placeholder("x")
    made.output(build(made, x))
    return GraphModule(root, made)


def exported(model: nn.Module, *args: Any) -> GraphModule:
    return torch.export.export(model, args, strict=False).module(check_guards=False)


class Mask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(16).reshape(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.tril(torch.ones(4, 4)) * (self.table + 1)
        return x * mask + torch.full((4,), 2.0)


def test_chains_of_constants_become_one_attribute() -> None:
    module = exported(Mask(), torch.randn(4, 4))
    ran = run(module, fold)
    assert targets(ran.module) == [torch.ops.aten.mul.Tensor, torch.ops.aten.add.Tensor]
    assert type(ran.module._folded_0) is Tensor
    assert "_folded_0" not in dict(ran.module.named_buffers())
    assert_same(module, ran.module, torch.randn(4, 4))


def test_names_that_are_taken_stay_theirs() -> None:
    module = graph(
        lambda g, x: g.call_function(
            torch.add, (x, g.call_function(torch.add, (g.get_attr("_folded_0"), 1)))
        ),
        _folded_0=torch.ones(2),
    )
    ran = run(module, fold)
    assert torch.equal(ran.module._folded_0, torch.ones(2))
    assert torch.equal(ran.module._folded_1, torch.full((2,), 2.0))


def test_missing_values_are_requested_and_not_made_up() -> None:
    module = exported(Mask(), torch.randn(4, 4))
    absent = decoded(module)
    wanted = fold.values_read(absent)
    assert len(wanted) == 1
    ran = run(absent, fold)
    buffers = [n for n in ran.module.graph.nodes if n.op == "get_attr" and n.target in wanted]
    assert buffers
    assert wanted == fold.values_read(decoded(module))
    given = run(decoded(module, values=True), fold)
    assert len(targets(given.module)) == 2


def test_a_graph_without_constants_asks_for_nothing() -> None:
    module = exported(nn.Linear(2, 2), torch.randn(1, 2))
    assert fold.values_read(decoded(module)) == frozenset()
    assert not run(module, fold).changed


def test_trained_parameters_are_folded_on_request_only() -> None:
    module = graph(
        lambda g, x: g.call_method("mul", (x, g.call_method("t", (g.get_attr("weight"),)))),
        weight=nn.Parameter(torch.randn(3, 2)),
    )
    assert not run(module, fold).changed
    assert fold.values_read(decoded(module)) == frozenset()
    wanting = ConstantFold(fold_parameters=True)
    ran = run(module, wanting)
    assert ran.changed
    assert not ran.module._folded_0.requires_grad
    assert_same(module, ran.module, torch.randn(2, 3))
    assert len(wanting.values_read(decoded(module))) == 1


def test_frozen_parameters_are_constants() -> None:
    module = graph(
        lambda g, x: g.call_method("mul", (x, g.call_method("exp", (g.get_attr("weight"),)))),
        weight=nn.Parameter(torch.randn(3), requires_grad=False),
    )
    assert run(module, fold).changed


def test_buffers_stay_on_request() -> None:
    module = exported(Mask(), torch.randn(4, 4))
    ran = run(module, ConstantFold(fold_buffers=False))
    assert any(n.target == "table" for n in ran.module.graph.nodes)


def test_random_draws_and_uninitialized_memory_stay() -> None:
    for target in (torch.rand, torch.randn, torch.empty):
        module = graph(
            lambda g, x, t=target: g.call_function(torch.add, (x, g.call_function(t, ((3,),))))
        )
        assert not run(module, fold).changed


def test_what_is_written_later_stays() -> None:
    def build(g: Any, x: Any) -> Any:
        total = g.call_function(torch.zeros, ((3,),))
        g.call_method("add_", (total, x))
        return g.call_method("mul", (total, 2))

    module = graph(build)
    ran = run(module, fold)
    assert not ran.changed
    assert_same(module, ran.module, torch.ones(3))


def test_a_buffer_that_is_written_is_no_constant() -> None:
    def build(g: Any, x: Any) -> Any:
        count = g.get_attr("count")
        g.call_method("add_", (count, 1))
        return g.call_function(torch.add, (x, g.call_method("mul", (count, 2))))

    module = graph(build, count=torch.zeros(()))
    assert not run(module, fold).changed


def test_a_returned_constant_is_created_at_each_call() -> None:
    module = graph(lambda g, x: (x, g.call_function(torch.ones, ((2,),))))
    ran = run(module, fold)
    ran.module(torch.ones(2))[1].zero_()
    assert torch.equal(ran.module(torch.ones(2))[1], torch.ones(2))


def test_large_values_stay_and_are_not_computed() -> None:
    huge = 1 << 50
    module = graph(
        lambda g, x: g.call_function(
            torch.add, (x, g.call_method("sum", (g.call_function(torch.ones, ((huge,),)),)))
        )
    )
    assert not run(module, fold).changed
    small = graph(
        lambda g, x: g.call_function(torch.add, (x, g.call_function(torch.ones, ((8,),))))
    )
    assert run(small, ConstantFold(max_bytes=32)).changed
    assert not run(small, ConstantFold(max_bytes=31)).changed


def test_the_sum_of_all_results_is_bounded() -> None:
    def build(g: Any, x: Any) -> Any:
        for _ in range(4):
            x = g.call_function(torch.add, (x, g.call_function(torch.ones, ((8,),))))
        return x

    with pytest.raises(PassError, match="setting max_folded_bytes") as caught:
        run(graph(build), fold, limits=PassLimits(max_folded_bytes=127))
    assert caught.value.kind == "limit"
    assert caught.value.pass_name == "constant_fold"
    assert run(graph(build), fold, limits=PassLimits(max_folded_bytes=128)).changed


def test_a_view_of_a_buffer_is_a_copy() -> None:
    table = torch.arange(6.0)
    module = graph(
        lambda g, x: g.call_function(
            torch.add, (x, g.call_method("reshape", (g.get_attr("t"), 2, 3)))
        ),
        t=table,
    )
    ran = run(module, fold)
    assert ran.module._folded_0.untyped_storage().data_ptr() != table.data_ptr()


def test_strides_of_a_result_are_kept() -> None:
    module = graph(
        lambda g, x: g.call_function(torch.add, (x, g.call_method("t", (g.get_attr("t"),)))),
        t=torch.arange(6.0).reshape(2, 3),
    )
    assert run(module, fold).module._folded_0.stride() == (1, 3)


def test_autocast_regions_keep_their_constants() -> None:
    def build(g: Any, x: Any) -> Any:
        scope = g.call_function(
            torch.amp.autocast_mode._enter_autocast, ("cpu", torch.bfloat16, True, True)
        )
        eye = g.call_function(torch.eye, (3,))
        product = g.call_function(torch.mm, (eye, eye))
        y = g.call_function(torch.mm, (x, product))
        g.call_function(torch.amp.autocast_mode._exit_autocast, (scope,))
        return g.call_function(torch.add, (y, g.call_function(torch.ones, ((3,),))))

    module = graph(build)
    ran = run(module, fold)
    assert torch.mm in targets(ran.module)
    assert torch.ones not in targets(ran.module)
    assert_same(module, ran.module, torch.randn(3, 3))
    assert not torch.is_autocast_enabled("cpu")


def test_metadata_of_a_device_that_is_not_here_keeps_its_constants() -> None:
    module = graph(
        lambda g, x: g.call_function(
            torch.add,
            (x, g.call_function(torch.ones, ((3,),), {"device": torch.device("cuda", 7)})),
        )
    )
    ran = run(module, fold)
    assert not ran.changed


def test_nested_graphs_are_left_alone() -> None:
    inner = symbolic_trace(lambda x: x + torch.ones(3))
    module = graph(lambda g, x: g.call_module("inner", (x,)), inner=inner)
    assert not run(module, fold).changed


def test_a_call_of_a_leaf_module_is_folded_when_its_tensors_are_constants() -> None:
    norm = nn.BatchNorm1d(3, affine=False).eval()
    module = graph(
        lambda g, x: g.call_function(
            torch.add, (x, g.call_module("norm", (g.call_function(torch.ones, ((2, 3),)),)))
        ),
        norm=norm,
    )
    ran = run(module, fold)
    assert targets(ran.module) == [torch.add]
    assert_same(module, ran.module, torch.randn(2, 3))
    assert len(fold.values_read(decoded(module))) >= 2


def test_a_bad_option_is_refused() -> None:
    with pytest.raises(PassError, match="max_bytes"):
        Registry().create("constant_fold", {"max_bytes": -1})
