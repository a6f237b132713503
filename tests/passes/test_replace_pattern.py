"""Patterns and replacements as graphs."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from passes.running import Ran, assert_same, decoded, run, targets
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, symbolic_trace

from lazyfx.shared import wire
from lazyfx_server.passes import PassError, PassLimits
from lazyfx_server.passes.builtin.fusing.replace_pattern import ReplacePattern

replace = ReplacePattern()


def apply(
    module: GraphModule,
    *pairs: tuple[Callable[..., Any], Callable[..., Any]],
    limits: PassLimits | None = None,
) -> Ran:
    rewrites = [(symbolic_trace(one), symbolic_trace(other)) for one, other in pairs]
    return run(module, replace, rewrites=rewrites, limits=limits)


def relu_of_sum(a: Any, b: Any) -> Any:
    return torch.relu(torch.add(a, b))


def clamped_sum(a: Any, b: Any) -> Any:
    return torch.add(a, b).clamp(min=0)


def two_sums(x: Tensor, y: Tensor) -> Tensor:
    return torch.relu(torch.add(torch.relu(torch.add(x, y)), y)) * 2


def test_every_occurrence_is_replaced() -> None:
    module = symbolic_trace(two_sums)
    ran = apply(module, (relu_of_sum, clamped_sum))
    assert ran.note == "2 matches"
    assert torch.relu not in targets(ran.module)
    assert_same(module, ran.module, torch.randn(3), torch.randn(3))


def test_no_occurrence_is_no_change() -> None:
    ran = apply(symbolic_trace(two_sums), (lambda a: torch.sin(a), lambda a: torch.cos(a)))
    assert (ran.changed, ran.note) == (False, "0 matches")
    assert run(symbolic_trace(two_sums), replace).note == "no rewrites"


def test_rewrites_run_in_order() -> None:
    ran = apply(
        symbolic_trace(lambda x: torch.sin(x)),
        (lambda a: torch.sin(a), lambda a: torch.cos(a)),
        (lambda a: torch.cos(a), lambda a: torch.tan(a)),
    )
    assert targets(ran.module) == [torch.tan]


def test_a_rewrite_whose_output_matches_itself_ends() -> None:
    module = symbolic_trace(lambda x: torch.sin(torch.sin(x)))
    ran = apply(module, (lambda a: torch.sin(a), lambda a: torch.sin(torch.sin(a))))
    assert ran.note == "2 matches"
    assert len(targets(ran.module)) == 4


def test_decoded_graphs_with_canonical_names() -> None:
    module = symbolic_trace(two_sums)
    pair = (decoded(symbolic_trace(relu_of_sum)), decoded(symbolic_trace(clamped_sum)))
    ran = run(decoded(module), replace, rewrites=[pair])
    assert ran.note == "2 matches"
    assert_same(module, ran.module, torch.randn(3), torch.randn(3))


def test_new_nodes_are_not_taken_for_the_caller_s() -> None:
    """A replacement's own names would claim a source node that they do not come from."""
    module = symbolic_trace(lambda x: torch.sin(x) + 1)
    body = wire.encode(module).body
    pattern = decoded(symbolic_trace(lambda a: torch.sin(a)))
    long = decoded(symbolic_trace(lambda a: torch.cos(torch.cos(torch.cos(torch.cos(a))))))
    ran = run(wire.decode(body), replace, rewrites=[(pattern, long)], in_place=True)
    encoded = wire.encode(ran.module)
    (rows,) = wire.provenance(body, encoded)
    assert list(rows.nodes) == [1, 0, 0, 0, 0, 3, 4]


def test_new_nodes_do_not_carry_the_shapes_of_the_pattern() -> None:
    example = torch.export.export(_Sum(), (torch.ones(7, 7), torch.ones(7, 7)))
    pattern = _flat(example.module(check_guards=False))
    module = torch.export.export(_Sum(), (torch.ones(2), torch.ones(2))).module(check_guards=False)
    ran = run(module, replace, rewrites=[(pattern, pattern)])
    assert ran.note == "1 matches"
    for node in ran.module.graph.nodes:
        if node.op == "call_function":
            assert "val" not in node.meta


class _Sum(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.relu(torch.add(a, b))


def _flat(module: GraphModule) -> GraphModule:
    graph = Graph()
    graph.output(graph.graph_copy(module.graph, {}))
    return GraphModule(nn.Module(), graph)


def test_patterns_with_several_results() -> None:
    def pattern(a: Any, b: Any) -> Any:
        s = torch.add(a, b)
        return torch.sin(s), torch.cos(s)

    def replacement(a: Any, b: Any) -> Any:
        s = torch.sub(a, torch.neg(b))
        return torch.sin(s), torch.cos(s)

    def model(x: Tensor, y: Tensor) -> Tensor:
        s = torch.add(x, y)
        return torch.sin(s) * torch.cos(s)

    module = symbolic_trace(model)
    ran = apply(module, (pattern, replacement))
    assert ran.note == "1 matches"
    assert torch.add not in targets(ran.module)
    assert_same(module, ran.module, torch.randn(3), torch.randn(3))


def test_a_result_that_is_used_before_another_input_exists() -> None:
    def pattern(a: Any, b: Any) -> Any:
        return torch.sin(a), torch.cos(a * b)

    def model(x: Tensor) -> Tensor:
        early = torch.sin(x)
        late = torch.exp(early)
        return torch.cos(x * late) + early

    module = symbolic_trace(model)
    ran = apply(module, (pattern, pattern))
    assert_same(module, ran.module, torch.randn(3))


def test_writes_are_not_crossed() -> None:
    def model(x: Tensor) -> Tensor:
        y = x * 1
        s = torch.add(y, 1)
        y.add_(5)
        return torch.relu(s) + y

    module = symbolic_trace(model)
    ran = apply(module, (lambda a: torch.relu(torch.add(a, 1)), lambda a: torch.relu(a + 1)))
    assert ran.note == "0 matches"
    assert_same(module, ran.module, torch.randn(3))


def _written_result(x: Tensor, y: Tensor) -> Any:
    s = torch.add(x, 1)
    s.mul_(3)
    return torch.relu(s), s * 1


def _read_before_a_write(x: Tensor, y: Tensor) -> Any:
    y = y * 1
    s = y.add_(1)
    r = y * 3
    return torch.relu(s) + r + x


def _drawn_in_order(x: Tensor, y: Tensor) -> Any:
    s = torch.dropout(x, 0.5, True)
    other = torch.rand_like(y)
    return torch.relu(s) + other


def _used_by_an_earlier_match(x: Tensor, y: Tensor) -> Any:
    a1, a2 = torch.relu(x), torch.relu(y)
    u, z = torch.sin(a1), torch.cos(x * y)
    return u, torch.neg(a2), torch.neg(z)


@pytest.mark.parametrize(
    ("model", "pattern", "replacement", "matches"),
    [
        (
            _written_result,
            lambda a: (s := torch.add(a, 1), torch.relu(s)),
            lambda a: (s := torch.sub(a, -1), torch.clamp(s, min=0)),
            0,
        ),
        (
            _read_before_a_write,
            lambda a: torch.relu(a.add_(1)),
            lambda a: a.add_(1).clamp(min=0),
            0,
        ),
        (
            _drawn_in_order,
            lambda a: torch.relu(torch.dropout(a, 0.5, True)),
            lambda a: torch.dropout(a, 0.5, True).clamp(min=0),
            0,
        ),
        (
            _used_by_an_earlier_match,
            lambda p, q: (torch.relu(p), torch.neg(q)),
            lambda p, q: (torch.clamp(p, min=0), torch.mul(q, -1)),
            1,
        ),
    ],
)
def test_matches_are_not_moved_across_what_they_would_change(
    model: Any, pattern: Any, replacement: Any, matches: int
) -> None:
    module = symbolic_trace(model)
    ran = apply(module, (pattern, replacement))
    x, y = torch.randn(30), torch.randn(30)
    torch.manual_seed(0)
    expected = module(x, y)
    torch.manual_seed(0)
    torch.testing.assert_close(ran.module(x, y), expected)
    assert ran.note == f"{matches} matches"


@pytest.mark.parametrize(
    ("model", "pattern", "replacement"),
    [
        (
            lambda x: torch.mul(torch.add(x, 1), 1.0),
            lambda a, s: torch.mul(torch.add(a, s), s),
            lambda a, s: torch.mul(s, torch.add(a, s)),
        ),
        (
            lambda x: torch.mul(torch.add(x, 1), True),
            lambda a, s: torch.mul(torch.add(a, s), s),
            lambda a, s: torch.mul(s, torch.add(a, s)),
        ),
        (
            lambda x: torch.div(1.0, torch.mul(x, -0.0)),
            lambda a: torch.mul(a, 0.0),
            lambda a: torch.add(a - a, 0.0),
        ),
        (lambda x: x[[0, 1]], lambda a: a[(0, 1)], lambda a: a[0][1]),
        (lambda x: x[(0, 1)], lambda a: a[[0, 1]], lambda a: a[:2]),
    ],
)
def test_literals_that_are_equal_but_mean_something_else(
    model: Any, pattern: Any, replacement: Any
) -> None:
    module = symbolic_trace(model)
    ran = apply(module, (pattern, replacement))
    x = torch.ones(3, 3, dtype=torch.int32)
    torch.testing.assert_close(ran.module(x), module(x))
    assert ran.note == "0 matches"


def _of_lists(xs: Any) -> Any:
    return torch.cat(xs)


def test_writes_to_items_of_a_list_are_not_crossed() -> None:
    """An input of the pattern stands for the list, so its items are moved with it."""

    def model(x: Tensor) -> Tensor:
        y = x * 1
        s = torch.cat([y, x])
        y.add_(5)
        return torch.relu(s) + 1

    module = symbolic_trace(model)
    pattern = (lambda xs: torch.relu(torch.cat(xs)), lambda xs: torch.cat(xs).clamp(min=0))
    ran = apply(module, pattern)
    assert ran.note == "0 matches"
    assert_same(module, ran.module, torch.randn(3))


def test_items_of_a_list_that_were_replaced_are_the_new_ones() -> None:
    module = symbolic_trace(lambda x: torch.cat([torch.cat([x, x]), x]))
    ran = apply(module, (_of_lists, lambda xs: torch.concat(xs)))
    assert ran.note == "2 matches"
    assert_same(module, ran.module, torch.randn(3))


def test_items_of_a_list_are_not_inside_the_match() -> None:
    """The list holds the other result, which the replacement would have to be computed from."""

    def pattern(a: Any, xs: Any) -> Any:
        return torch.sin(a), torch.cat(xs)

    def model(x: Tensor) -> Tensor:
        s = torch.sin(x)
        return torch.cat([s, s]) + 1

    ran = apply(symbolic_trace(model), (pattern, lambda a, xs: (torch.cos(a), torch.concat(xs))))
    assert ran.note == "0 matches"


def test_one_of_several_results_that_occurs_nowhere() -> None:
    pattern = (lambda a: (torch.sin(a), torch.cos(a)), lambda a: (torch.tan(a), torch.tan(a)))
    assert apply(symbolic_trace(lambda x: torch.sin(x)), pattern).note == "0 matches"


def test_a_pattern_with_a_rare_call_is_found_from_there() -> None:
    def model(x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.add(torch.relu(x), torch.relu(x * 2))
        y = torch.add(torch.relu(torch.tanh(x)), 1)
        return torch.add(torch.relu(y), 1) + torch.tanh(y)

    pattern = (lambda a: torch.add(torch.relu(torch.tanh(a)), 1), lambda a: torch.sigmoid(a))
    ran = apply(symbolic_trace(model), pattern)
    assert ran.note == "1 matches"
    assert targets(ran.module).count(torch.tanh) == 1


def test_in_place_patterns_can_be_replaced() -> None:
    module = symbolic_trace(lambda x: torch.relu_(x * 2) + 1)
    ran = apply(module, (lambda a: torch.relu_(a), lambda a: torch.relu(a)))
    assert ran.note == "1 matches"
    assert_same(module, ran.module, torch.randn(3))


def test_a_replacement_may_hand_an_input_through() -> None:
    module = symbolic_trace(lambda x: torch.add(x, 0) * torch.add(3, 0))
    ran = apply(module, (lambda a: torch.add(a, 0), lambda a: a))
    assert ran.note == "1 matches"


def test_constants_of_a_replacement_keep_their_values() -> None:
    """The replacement's attribute has the name of one that the module has."""
    root = nn.Module()
    root.a0 = torch.full((3,), 7.0)
    graph = Graph()
    x = graph.placeholder("x")
    graph.output(
        graph.call_function(torch.add, (torch.fx.Proxy(x).sin().node, graph.get_attr("a0")))
    )
    module = GraphModule(root, graph)
    other = nn.Module()
    other.a0 = torch.full((3,), 2.0)
    made = Graph()
    a = made.placeholder("a")
    made.output(made.call_function(torch.mul, (a, made.get_attr("a0"))))
    pattern = Graph()
    p = pattern.placeholder("a")
    pattern.output(pattern.call_method("sin", (p,)))
    ran = run(
        module, replace, rewrites=[(GraphModule(nn.Module(), pattern), GraphModule(other, made))]
    )
    value = ran.module(torch.ones(3))
    assert torch.equal(value, torch.full((3,), 9.0))


def test_nested_graphs_are_rewritten_too() -> None:
    graph = Graph()
    graph.output(graph.call_module("inner", (graph.placeholder("x"),)))
    root = nn.Module()
    root.inner = symbolic_trace(lambda x: torch.sin(x))
    ran = apply(GraphModule(root, graph), (lambda a: torch.sin(a), lambda a: torch.cos(a)))
    assert ran.note == "1 matches"
    assert targets(ran.module.inner) == [torch.cos]


def test_submodules_of_the_caller_stay() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    model.unused = nn.Linear(2, 2)
    ran = apply(symbolic_trace(model), (lambda a: torch.sin(a), lambda a: torch.cos(a)))
    assert isinstance(ran.module.get_submodule("0"), nn.Linear)


def test_matches_are_bounded() -> None:
    module = symbolic_trace(lambda x: torch.sin(torch.sin(torch.sin(x))))
    pair = (lambda a: torch.sin(a), lambda a: torch.cos(a))
    assert apply(module, pair, limits=PassLimits(max_matches=3)).note == "3 matches"
    with pytest.raises(PassError) as caught:
        apply(module, pair, limits=PassLimits(max_matches=2))
    assert caught.value.kind == "limit"
    assert caught.value.field == "passes[0].rewrites[0].pattern"


def test_a_search_over_too_many_combinations_is_refused() -> None:
    def model(x: Tensor) -> Tensor:
        total = x
        for _ in range(30):
            total = total + torch.sin(x) * torch.cos(x) * torch.tan(x)
        return total

    pattern = (lambda a: (torch.sin(a), torch.cos(a), torch.tan(a)),) * 2
    with pytest.raises(PassError, match="combinations") as caught:
        apply(symbolic_trace(model), pattern, limits=PassLimits(max_matches=10_000))
    assert caught.value.kind == "limit"


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("c", torch.ones(3))
        self.layer = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(x, self.c)


class _Calls(_Constant):
    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


@pytest.mark.parametrize(
    ("pattern", "replacement", "field", "message"),
    [
        (_Constant(), lambda a: a * 1, "pattern", "attribute"),
        (_Calls(), lambda a: a * 1, "pattern", "module"),
        (lambda a: torch.sin(a), _Calls(), "replacement", "module"),
        (lambda a: a, lambda a: a, "pattern", "returned unchanged"),
        (lambda a, b: torch.sin(a), lambda a, b: torch.cos(a), "pattern", "not used"),
        (lambda a: 3, lambda a: a, "pattern", "not used"),
        (lambda a: torch.sin(a), lambda a, b: torch.cos(a), "replacement", "takes 2 inputs"),
        (lambda a: torch.sin(a), lambda a: (a + 1, a + 2), "replacement", "must return 1"),
        (lambda a: torch.sin(a), lambda a: 3, "replacement", "must return 1"),
    ],
)
def test_rewrites_that_mean_nothing(
    pattern: Any, replacement: Any, field: str, message: str
) -> None:
    with pytest.raises(PassError, match=message) as caught:
        apply(symbolic_trace(two_sums), (pattern, replacement))
    assert caught.value.kind == "invalid"
    assert caught.value.field == f"passes[0].rewrites[0].{field}"
