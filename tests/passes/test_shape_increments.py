"""Shape propagation computes what is new, and what that changes."""

import pytest
import torch
from passes.running import decoded, run
from torch import nn
from torch.fx import GraphModule

from lazyfx_server.passes import Registry

aten = torch.ops.aten


def _captured() -> GraphModule:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(x + 1).exp().sum(0)

    return torch.export.export(Model(), (torch.randn(2, 3),)).module(check_guards=False)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the nodes that were computed."""
    from lazyfx_server.passes.analysis.fake_run import FakeRun

    computed: list[str] = []
    original = FakeRun._call

    def counting(self, node, args, kwargs):  # type: ignore[no-untyped-def]
        computed.append(node.name)
        return original(self, node, args, kwargs)

    monkeypatch.setattr(FakeRun, "_call", counting)
    return computed


def test_a_captured_graph_needs_nothing(calls: list[str]) -> None:
    for module in (_captured(), decoded(_captured())):
        assert not run(module, Registry().create("shape_propagation")).changed
    assert calls == []


def test_only_new_nodes_are_computed(calls: list[str]) -> None:
    module = _captured()
    relu = module.graph.find_nodes(op="call_function", target=aten.relu.default)[0]
    with module.graph.inserting_before(relu):
        new = module.graph.call_function(aten.gelu.default, relu.args)
    relu.replace_all_uses_with(new)
    module.graph.erase_node(relu)
    ran = run(module, Registry().create("shape_propagation"))
    assert ran.changed
    assert calls[0] == new.name
    assert calls[1:] == ["exp"], "its user is computed, agrees, and ends it"
    made = ran.module.graph.find_nodes(op="call_function", target=aten.gelu.default)[0]
    assert made.meta["val"].shape == (2, 3)


def test_a_change_reaches_its_users() -> None:
    module = _captured()
    for node in module.graph.nodes:
        if node.target is aten.relu.default:
            with module.graph.inserting_after(node):
                double = module.graph.call_function(
                    aten._to_copy.default, (node,), {"dtype": torch.float64}
                )
            node.replace_all_uses_with(
                double, delete_user_cb=lambda user, new=double: user is not new
            )
    ran = run(module, Registry().create("shape_propagation"))
    dtypes = {
        n.name: n.meta["val"].dtype for n in ran.module.graph.nodes if n.op == "call_function"
    }
    assert dtypes["relu"] is torch.float32
    assert dtypes["exp"] is dtypes["sum_1"] is torch.float64


def test_recompute_does_not_trust_what_was_known() -> None:
    module = _captured()
    exp = module.graph.find_nodes(op="call_function", target=aten.exp.default)[0]
    exp.meta["val"] = module.graph.find_nodes(op="call_function", target=aten.sum.dim_IntList)[
        0
    ].meta["val"]
    assert not run(module, Registry().create("shape_propagation")).changed
    ran = run(module, Registry().create("shape_propagation", {"recompute": True}))
    assert ran.changed
    found = ran.module.graph.find_nodes(op="call_function", target=aten.exp.default)[0]
    assert found.meta["val"].shape == (2, 3)


def test_a_method_that_changes_a_shape_in_place_is_not_skipped() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    turned = graph.call_method("t_", (x,))
    after = graph.call_method("clone", (x,))
    graph.output((turned, after))
    from torch._subclasses.fake_tensor import FakeTensorMode

    x.meta["val"] = FakeTensorMode().from_tensor(torch.empty(2, 3))
    ran = run(GraphModule(nn.Module(), graph), Registry().create("shape_propagation"))
    shapes = [tuple(n.meta["val"].shape) for n in ran.module.graph.nodes if n.op == "call_method"]
    assert shapes == [(3, 2), (3, 2)]
