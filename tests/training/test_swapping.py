"""wait=False: code changes in the middle of a job's step, and results stay the same.

AOTAutograd stands in for the server here, so that answers can arrive at any point of a step;
test_waiting.py has the same with a server.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import sympy
import torch
from torch import nn
from torch._dynamo.backends.registry import lookup_backend
from torch.utils.checkpoint import checkpoint

from lazyfx.backend.dynamo_graphs import FlatGraph
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.remote import GraphRequest, GraphResult
from lazyfx.backend.waiting.swapping import DeferredGraph
from lazyfx.shared.native.torch_inductor import functorch_config

ROWS = 6


class Broken(nn.Module):
    """Two graphs, and a batch norm in each; one is shared."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(8, 8)
        self.one = nn.BatchNorm1d(8)
        self.second = nn.Linear(8, 8)
        self.two = nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.one(self.first(x)))
        torch._dynamo.graph_break()
        self.calls.add_(1)
        return self.two(self.one(self.second(y)) + y)


class Answers:
    """A backend whose graphs are swapped when the test says."""

    def __init__(self) -> None:
        self.graphs: list[DeferredGraph] = []
        self.gates: list[threading.Event] = []
        self.swapped = 0
        self.errors: list[Exception] = []

    def __call__(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        gate = threading.Event()
        flat = FlatGraph(module, (), tuple(inputs))
        conditions = self.conditions(inputs)
        compiled = self.compiled(module, inputs)

        def ask(_: GraphRequest) -> GraphResult:
            gate.wait()
            return GraphResult(lambda: compiled, "", "hit", conditions)

        def swap(_: GraphResult) -> None:
            self.swapped += 1

        graph_request = GraphRequest(module, None, flat, BackendOptions())
        graph = DeferredGraph(module, graph_request, ask, on_swap=swap, on_error=self.errors.append)
        self.graphs.append(graph)
        self.gates.append(gate)
        return graph

    def compiled(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        return lookup_backend("aot_eager")(module, inputs)

    def conditions(self, inputs: list[Any]) -> tuple[sympy.Basic, ...]:
        """Compiled code takes six rows, if the graph takes any number."""
        sizes = [value for value in inputs if isinstance(value, torch.SymInt)]
        return tuple(sympy.Eq(size.node.expr, ROWS) for size in sizes[:1])

    def let_in(self, number: int) -> None:
        self.gates[number].set()
        assert self.graphs[number].wait(60)


@pytest.fixture(autouse=True)
def _no_donated_buffers() -> Iterator[None]:
    """As the server compiles: a backward pass may be run again."""
    with functorch_config.patch(donated_buffer=False):
        yield


def pair(*, dynamic: bool = False) -> tuple[Broken, Broken, Any, Answers]:
    model, eager = Broken(), Broken()
    answers = Answers()
    return model, eager, torch.compile(model, backend=answers, dynamic=dynamic), answers


def assert_same(model: Broken, eager: Broken) -> None:
    for (name, ours), theirs in zip(model.named_parameters(), eager.parameters(), strict=True):
        if theirs.grad is None:
            assert ours.grad is None, name
        else:
            torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda m, n=name: f"{n}: {m}")
    torch.testing.assert_close(model.state_dict(), eager.state_dict())


def batch(seed: int, rows: int = ROWS) -> torch.Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(seed))


def test_a_call_without_gradients_between_forward_and_backward() -> None:
    model, eager, compiled, answers = pair()

    def step(call: Callable[..., torch.Tensor], before_backward: Callable[[], object]) -> None:
        loss = call(batch(1)).square().mean()
        before_backward()
        with torch.no_grad():
            call(batch(2))
        loss.backward()

    def let_in_second() -> None:
        answers.let_in(1)

    step(compiled, let_in_second)
    # Both modes have been traced; now the graph without gradients is swapped alone.
    for number in range(2, len(answers.graphs)):
        answers.let_in(number)
    step(compiled, lambda: None)
    answers.let_in(0)
    step(compiled, lambda: None)
    for _ in range(3):
        step(eager, lambda: None)
    assert_same(model, eager)
    assert answers.swapped == len(answers.graphs)
    assert not answers.errors


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 1, 0)])
def test_a_checkpoint_is_computed_again_as_it_was_while_graphs_change(
    order: tuple[int, ...],
) -> None:
    model, eager, compiled, answers = pair()

    def step(call: Callable[..., torch.Tensor]) -> None:
        pending = []
        for number in range(2):
            x = batch(number).requires_grad_()
            pending.append(checkpoint(call, x, use_reentrant=False))
        pending.append(call(batch(2)))
        for y in pending:
            y.square().mean().backward()

    steps = 1
    step(compiled)
    for number in order:
        if number < len(answers.graphs):
            answers.let_in(number)
        for _ in range(2):
            step(compiled)
            steps += 1
    for _ in range(steps):
        step(eager)
    assert_same(model, eager)
    assert answers.swapped == len(answers.graphs)
    assert not answers.errors


@pytest.mark.parametrize(
    ("rows", "last_first"), [((6, 5), False), ((5, 6), True), ((6, 5, 6, 5), True)]
)
def test_checkpoints_of_sizes_that_fit_and_do_not_are_computed_again_as_they_were(
    rows: tuple[int, ...], last_first: bool
) -> None:
    model, eager, compiled, answers = pair(dynamic=True)

    def step(call: Callable[..., torch.Tensor]) -> None:
        pending = []
        for number, size in enumerate(rows):
            x = batch(number, size).requires_grad_()
            pending.append(checkpoint(call, x, use_reentrant=False))
        for y in reversed(pending) if last_first else pending:
            y.square().mean().backward()

    step(compiled)
    for number in range(len(answers.graphs)):
        answers.let_in(number)
    for _ in range(2):
        step(compiled)
    for _ in range(3):
        step(eager)
    assert_same(model, eager)
    assert answers.swapped == len(answers.graphs) == 2
    assert not answers.errors


@pytest.mark.parametrize("nested", [False, True])
def test_calls_in_one_checkpoint_run_different_code(nested: bool) -> None:
    model, eager, compiled, answers = pair(dynamic=True)

    def step(call: Callable[..., torch.Tensor], let_in: Callable[[int], object]) -> None:
        def region(x: torch.Tensor) -> torch.Tensor:
            first = call(x)
            let_in(0)
            with torch.autograd.graph.save_on_cpu():
                second = call(first[1:])
            let_in(1)
            return call(second.repeat(2, 1)[:ROWS]).square()

        def outer(x: torch.Tensor) -> torch.Tensor:
            return checkpoint(region, x * 2, use_reentrant=False)

        x = batch(1).requires_grad_()
        loss = checkpoint(outer if nested else region, x, use_reentrant=False).mean()
        loss.backward(retain_graph=True)
        loss.backward()

    step(compiled, lambda _: None)
    for _ in range(2):
        step(compiled, answers.let_in)
    for _ in range(3):
        step(eager, lambda _: None)
    assert_same(model, eager)
    assert answers.swapped == 2
    assert not answers.errors


ACTIONS = (
    "forward", "forward", "backward", "backward", "no_grad", "evaluate", "evaluate_with_grad",
    "accumulate", "checkpoint", "reentrant", "retain", "let_in", "let_in", "zero",
)  # fmt: skip


def chance_rows(seed: int) -> int:
    return (ROWS, ROWS, 5, 7)[seed % 4]


class Job:
    """One model under a sequence of actions."""

    def __init__(self, model: nn.Module, call: Callable[..., torch.Tensor], *, sizes: bool) -> None:
        self.model, self.call, self.sizes = model, call, sizes
        self.losses: list[torch.Tensor] = []
        self.seen: list[torch.Tensor] = []

    def act(self, action: str, seed: int) -> None:
        x = batch(seed, chance_rows(seed) if self.sizes else ROWS)
        if action == "forward":
            self.losses.append(self.call(x).square().mean())
        elif action == "backward" and self.losses:
            self.losses.pop().backward()
        elif action == "retain" and self.losses:
            self.losses[-1].backward(retain_graph=True)
        elif action == "accumulate" and self.losses:
            torch.stack(self.losses).sum().backward()
            self.losses.clear()
        elif action == "no_grad":
            with torch.no_grad():
                self.seen.append(self.call(x))
        elif action.startswith("evaluate") and not self.losses:
            self.model.eval()
            with torch.set_grad_enabled(action != "evaluate"):
                found = self.call(x)
            if found.requires_grad:
                found.sum().backward()
            self.seen.append(found.detach())
            self.model.train()
        elif action in ("checkpoint", "reentrant"):
            x.requires_grad_()
            self.losses.append(
                checkpoint(self.call, x, use_reentrant=action == "reentrant").square().mean()
            )
        elif action == "zero":
            self.model.zero_grad()


@pytest.mark.parametrize(
    ("seed", "sizes"),
    [(0, False), (1, True), (2, False)]
    + [
        pytest.param(seed, sizes, marks=pytest.mark.slow)
        for seed in range(3, 30)
        for sizes in (False, True)
    ],
)
def test_any_order_of_calls_and_swaps(seed: int, sizes: bool) -> None:
    chance = random.Random(seed)
    model, eager, compiled, answers = pair(dynamic=sizes)
    ours, theirs = Job(model, compiled, sizes=sizes), Job(eager, eager, sizes=sizes)
    waiting: list[int] = []
    known = 0
    for _ in range(40):
        action = chance.choice(ACTIONS)
        waiting += range(known, len(answers.graphs))
        known = len(answers.graphs)
        if action == "let_in":
            if waiting:
                answers.let_in(waiting.pop(chance.randrange(len(waiting))))
            continue
        number = chance.randrange(1000)
        # Where eager code itself refuses, so may we.
        try:
            theirs.act(action, number)
        except RuntimeError:
            with pytest.raises(RuntimeError):
                ours.act(action, number)
            break
        ours.act(action, number)
        torch.testing.assert_close(ours.seen, theirs.seen)
        assert_same(model, eager)
    assert not answers.errors
    ours.losses.clear()
    theirs.losses.clear()
    for number in waiting:
        answers.let_in(number)
    ours.act("forward", 4)
    ours.act("backward", 4)
    assert answers.swapped >= 2


def test_what_was_left_undone_does_not_keep_the_code_as_it_is() -> None:
    model, eager, compiled, answers = pair()
    kept = compiled(batch(1)).sum()
    kept.backward()  # what it saved is gone, though the loss is still held
    compiled(batch(2))  # nothing of this one is held
    for number in range(len(answers.graphs)):
        answers.let_in(number)
    compiled(batch(3)).sum().backward()
    assert answers.swapped == 2
    eager(batch(1)).sum().backward()
    eager(batch(2))
    eager(batch(3)).sum().backward()
    assert_same(model, eager)


class Masked(nn.Module):
    """Dropout of ones: what it returns is the mask, and so is the gradient of its sum."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.dropout(x, 0.5, training=self.training)


class DrawingAnswers(Answers):
    """Compiled code that draws other numbers than the graph as it is, as Inductor's does."""

    def compiled(self, module: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        call = super().compiled(module, inputs)

        def draw_first(*values: Any) -> Any:
            torch.rand(3)
            return call(*values)

        return draw_first


MASKED_ACTIONS = (
    "forward", "checkpoint", "reentrant", "nested", "backward", "backward", "let_in", "no_grad",
)  # fmt: skip


def assert_one_mask(pending: tuple[torch.Tensor, torch.Tensor]) -> None:
    x, y = pending
    y.sum().backward()
    assert torch.equal(x.grad, y.detach())


def masked(action: str, call: Callable[..., torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.ones(64, requires_grad=True)
    if action == "forward":
        return x, call(x)
    if action == "nested":
        return x, checkpoint(
            lambda v: checkpoint(call, v, use_reentrant=False), x, use_reentrant=True
        )
    return x, checkpoint(call, x, use_reentrant=action == "reentrant")


@pytest.mark.parametrize("action", ["checkpoint", "reentrant", "nested"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2)])
def test_a_checkpoint_draws_again_what_it_drew(action: str, order: tuple[int, ...]) -> None:
    answers = DrawingAnswers()
    compiled = torch.compile(Masked(), backend=answers)
    for _ in range(2):  # without gradients, with them, in both ways
        assert_one_mask(masked(action, compiled))
        assert_one_mask(masked("forward", compiled))
    for number in order:
        if number < len(answers.graphs):
            pending = masked(action, compiled)
            answers.let_in(number)
            second = masked(action, compiled)
            assert_one_mask(pending)
            assert_one_mask(second)
            assert_one_mask(masked("forward", compiled))
    assert answers.swapped >= 1
    assert not answers.errors


@pytest.mark.parametrize("seed", range(4))
def test_masks_are_the_same_in_any_order_of_calls_and_swaps(seed: int) -> None:
    chance = random.Random(seed)
    answers = DrawingAnswers()
    compiled = torch.compile(Masked(), backend=answers)
    pending: list[tuple[torch.Tensor, torch.Tensor]] = []
    let_in = 0
    for _ in range(60):
        action = chance.choice(MASKED_ACTIONS)
        if action == "let_in":
            if let_in < len(answers.graphs):
                answers.let_in(let_in)
                let_in += 1
        elif action == "no_grad":
            with torch.no_grad():
                compiled(torch.ones(64))
        elif action == "backward":
            if pending:
                assert_one_mask(pending.pop(chance.randrange(len(pending))))
        else:
            pending.append(masked(action, compiled))
    while pending:
        assert_one_mask(pending.pop())
    assert not answers.errors
