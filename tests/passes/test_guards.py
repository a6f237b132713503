"""Rewrites with conditions: dtype, rank, sizes, and how many places."""

from __future__ import annotations

import pytest
import torch
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

import lazyfx
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassError, Pipeline, Registry
from lazyfx_server.passes.base import InputGuard, Rewrite
from lazyfx_server.passes.pass_requests import pipeline_of
from lazyfx_server.passes.rewrites import RewriteReader

aten = torch.ops.aten


def graph() -> GraphModule:
    def f(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return torch.relu(a), torch.relu(b), torch.relu(c)

    inputs = torch.ones(2, 3), torch.ones(4, dtype=torch.float64), torch.ones(2, 5)
    return make_fx(f, tracing_mode="fake")(*inputs)


def replaced(guards: tuple[InputGuard, ...] = (), at_most: int = 0, module=None) -> str:
    pattern = symbolic_trace(lambda x: aten.relu.default(x))
    replacement = symbolic_trace(lambda x: aten.neg.default(x))
    rewrite = Rewrite(pattern, replacement, guards, at_most)
    outcome = Pipeline((Registry().create("replace_pattern"),)).run(
        module or graph(), RecompileLedger(), None, {0: (rewrite,)}
    )
    nodes = [n for n in outcome.module.graph.nodes if n.op == "call_function"]
    by_input = sorted(nodes, key=lambda n: str(n.args[0]))
    return "".join("n" if n.target is aten.neg.default else "r" for n in by_input)


@pytest.mark.parametrize(
    ("guard", "expected"),
    [
        (InputGuard(0), "nnn"),
        (InputGuard(0, dtypes=("float64",)), "rnr"),
        (InputGuard(0, dtypes=("float64", "float32")), "nnn"),
        (InputGuard(0, rank=2), "nrn"),
        (InputGuard(0, shape=(2, -1)), "nrn"),
        (InputGuard(0, shape=(2, 5)), "rrn"),
        (InputGuard(0, dtypes=("int8",)), "rrr"),
    ],
)
def test_places_match_by_what_is_known_of_them(guard: InputGuard, expected: str) -> None:
    assert replaced((guard,)) == expected


def test_all_conditions_hold_and_places_are_bounded() -> None:
    assert replaced((InputGuard(0, rank=2), InputGuard(0, shape=(-1, 3)))) == "nrr"
    assert replaced(at_most=1) == "nrr"
    assert replaced(at_most=2) == "nnr"


def test_nothing_matches_where_nothing_is_known() -> None:
    module = symbolic_trace(lambda a: aten.relu.default(a))
    assert replaced((InputGuard(0, rank=2),), module=module) == "r"
    assert replaced(module=symbolic_trace(lambda a: aten.relu.default(a))) == "n"


@pytest.mark.parametrize(
    ("guard", "field"),
    [
        (InputGuard(1), "input"),
        (InputGuard(0, dtypes=("floaty",)), "dtypes"),
        (InputGuard(0, shape=(-2,)), "shape"),
        (InputGuard(0, rank=1, shape=(1, 1)), "rank"),
    ],
)
def test_conditions_that_mean_nothing_are_refused(guard: InputGuard, field: str) -> None:
    with pytest.raises(PassError) as caught:
        replaced((guard,))
    assert caught.value.field == f"passes[0].rewrites[0].guards[0].{field}"


def test_conditions_travel_and_are_part_of_the_fingerprint() -> None:
    def pair(**conditions: object) -> lazyfx.PassSpec:
        rewrite = lazyfx.Rewrite(
            lambda x: torch.relu(torch.relu(x)), lambda x: torch.relu(x), **conditions
        )
        return lazyfx.replace_pattern(rewrite)

    guard = lazyfx.InputGuard(0, dtypes=("float32",), rank=2, shape=(-1, 3))
    specs = [pair(), pair(guards=(guard,)), pair(at_most=3), pair(guards=(guard,), at_most=3)]
    pipelines = [pipeline_of(Registry(), [spec.message()]) for spec in specs]
    assert len({pipeline.fingerprint for pipeline in pipelines}) == 4
    message = specs[3].message()
    (read,) = RewriteReader().read([message], pipelines[3].passes)[0]
    assert Rewrite(*read).guards == (InputGuard(0, ("float32",), 2, (-1, 3)),)
    assert Rewrite(*read).at_most == 3
