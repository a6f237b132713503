"""A lazy module marks, counts and generates code once, when something needs it."""

import copy
import threading

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, subgraph_rewriter, symbolic_trace
from torch.fx.passes.dialect.common.cse_pass import CSEPass

from lazyfx_server.lazy import (
    RecompileCost,
    RecompileLedger,
    generate_source,
    lazy_job,
    make_lazy,
)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.register_buffer("shift", torch.ones(4))
        self.constant = torch.full((4,), 2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.linear(x)) + torch.relu(self.linear(x)) * self.constant + self.shift


@pytest.fixture
def ledger() -> RecompileLedger:
    return RecompileLedger()


@pytest.fixture
def texts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by one whenever torch generates code for a graph."""
    made: list[int] = []
    original = torch.fx.Graph.python_code

    def counting(graph: torch.fx.Graph, *args: object, **kwargs: object) -> object:
        made.append(len(graph.nodes))
        return original(graph, *args, **kwargs)

    monkeypatch.setattr(torch.fx.Graph, "python_code", counting)
    return made


def test_recompiles_are_marked_and_counted(ledger: RecompileLedger, texts: list[int]) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    texts.clear()
    for _ in range(5):
        module.recompile()
    assert (ledger.requested(), ledger.performed()) == (5, 0)
    assert texts == []
    assert ledger.saved_seconds() > 0


def test_making_lazy_keeps_the_object_and_everything_in_it(ledger: RecompileLedger) -> None:
    module = symbolic_trace(Small())
    module.meta["kept"] = 1
    constant = torch.ones(2)
    module.unused_constant = constant
    before = dict(module.named_parameters()), dict(module.named_buffers())
    lazy = make_lazy(module, ledger)
    assert lazy is module
    assert lazy.meta["kept"] == 1
    assert lazy.unused_constant is constant
    assert "unused_constant" not in dict(lazy.named_buffers())
    for old, new in zip(before, (lazy.named_parameters(), lazy.named_buffers()), strict=True):
        new = dict(new)
        assert list(old) == list(new)
        assert all(old[name] is new[name] for name in old)
    assert ledger.requested() == 0, "re-wrapping asks for nothing"


def test_stale_code_of_a_plain_module_is_not_served(ledger: RecompileLedger) -> None:
    module = symbolic_trace(Small())
    x = torch.randn(2, 4)
    module(x)
    for node in module.graph.find_nodes(op="call_function", target=torch.relu):
        node.target = torch.neg
    make_lazy(module, ledger)
    assert "torch.neg" in module.code
    assert torch.equal(module(x), copy.deepcopy(module)(x))


def test_a_call_recompiles_once(ledger: RecompileLedger) -> None:
    model = Small()
    x = torch.randn(2, 4)
    with lazy_job(ledger):
        module = symbolic_trace(model)
        module.recompile()
        for _ in range(3):
            assert torch.equal(module(x), model(x))
    assert [(event.trigger, event.executed) for event in ledger.events] == [("call", True)]
    assert ledger.requested() == 2


def test_reading_code_is_a_recompile_of_its_own_trigger(ledger: RecompileLedger) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    with ledger.in_scope("some_pass"):
        assert module.code == module.code
        str(module)
    assert [(e.scope, e.trigger) for e in ledger.events] == [("some_pass", "code")]


def test_everything_torch_builds_inside_a_job_is_lazy(
    ledger: RecompileLedger, texts: list[int]
) -> None:
    with lazy_job(ledger):
        module = symbolic_trace(Small())
        copied = copy.deepcopy(module)
        direct = GraphModule(module, copy.deepcopy(module.graph))
        merged = CSEPass()(module).graph_module
        pattern = symbolic_trace(lambda a: torch.relu(a))
        replacement = symbolic_trace(lambda a: torch.neg(a))
        matches = subgraph_rewriter.replace_pattern(merged, pattern, replacement)
    assert matches
    assert texts == []
    assert ledger.performed() == 0
    assert ledger.requested() == 7, "six were built, and replace_pattern asked for one"
    for built in (module, copied, direct, merged, pattern, replacement):
        built.recompile()
    assert ledger.requested() == 13


def test_nothing_of_a_job_remains(ledger: RecompileLedger) -> None:
    before = GraphModule.__dict__["__new__"]

    def fail() -> None:
        symbolic_trace(Small())
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), lazy_job(ledger):
        fail()
    assert GraphModule.__dict__["__new__"] is before
    asked = ledger.requested()
    module = symbolic_trace(Small())
    assert ledger.requested() == asked
    assert hasattr(module, "_code"), "outside of a job modules are eager"
    other = RecompileLedger()
    with lazy_job(other):
        symbolic_trace(Small())
    assert (ledger.requested(), other.requested()) == (asked, 1)


def test_other_threads_keep_their_eager_modules(ledger: RecompileLedger) -> None:
    graph = symbolic_trace(Small()).graph
    built: list[GraphModule] = []
    with lazy_job(ledger):
        thread = threading.Thread(target=lambda: built.append(GraphModule(Small(), graph)))
        thread.start()
        thread.join()
    assert hasattr(built[0], "_code")
    assert ledger.requested() == 0


def test_one_job_at_a_time(ledger: RecompileLedger) -> None:
    with lazy_job(ledger), pytest.raises(RuntimeError, match="one lazy job"):  # noqa: SIM117
        with lazy_job(RecompileLedger()):
            pass
    with lazy_job(ledger):
        pass


def test_children_are_lazy_and_left_alone_by_their_parent(ledger: RecompileLedger) -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = symbolic_trace(Small())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.child(x) + 1

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return True

    model = Parent()
    parent = GraphModule(model, Tracer().trace(model))
    make_lazy(parent, ledger)
    x = torch.randn(2, 4)
    assert torch.equal(parent(x), model(x))
    assert ledger.performed() == 2
    parent.recompile()
    parent(x)
    assert ledger.performed() == 3, "the child was up to date"


def test_hooks_fire_once(ledger: RecompileLedger) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    calls: list[int] = []
    module.register_forward_pre_hook(lambda m, a: calls.append(1))
    module(torch.randn(2, 4))
    assert calls == [1]


def test_concurrent_readers_get_one_text(ledger: RecompileLedger) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    barrier = threading.Barrier(8)
    codes: list[str] = []

    def read() -> None:
        barrier.wait()
        codes.append(module.code)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(codes)) == 1
    assert ledger.performed() == 1


def test_subclasses_keep_their_behaviour(ledger: RecompileLedger) -> None:
    class Special(GraphModule):
        def describe(self) -> str:
            return f"special of {len(self.graph.nodes)}"

    model = Small()
    plain = symbolic_trace(model)
    module = make_lazy(Special(plain, plain.graph), ledger)
    assert module.describe() == f"special of {len(plain.graph.nodes)}"
    module.recompile()
    assert ledger.requested() == 1
    x = torch.randn(2, 4)
    assert torch.equal(module(x), model(x))


def test_generate_source_is_one_recompile_and_executes_nothing(
    ledger: RecompileLedger, texts: list[int]
) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    texts.clear()
    source = generate_source(module, ledger, "pickle")
    assert len(texts) == 1
    assert [(e.trigger, e.executed) for e in ledger.events] == [("pickle", False)]
    assert "_code" not in module.__dict__ or module.__dict__["_code"] != ""
    eager = GraphModule(module, copy.deepcopy(module.graph))
    assert source.code == eager.code
    assert "import torch" in source.import_block


def test_estimates_follow_what_was_measured(ledger: RecompileLedger) -> None:
    assert ledger.cost.seconds(1000) == pytest.approx(1000 * 29e-6)
    assert not ledger.cost.measured
    graph = torch.fx.Graph()
    for number in range(1000):
        graph.placeholder(f"x{number}")
    graph.output(None)
    module = GraphModule(nn.Module(), graph)
    ledger.record_performed(module, 0.5, executed=True)
    assert ledger.cost.seconds(2000) == pytest.approx(1.0, rel=0.01)
    assert ledger.cost.measured
    ledger.record_performed(module, 0.25, executed=False)
    assert ledger.cost.seconds(2000) == pytest.approx(1.0, rel=0.01), (
        "text alone is half a recompile"
    )
    given = RecompileLedger(RecompileCost(1e-3, measured=True))
    given.record_requested(module)
    assert given.saved_seconds() == pytest.approx(1.0, rel=0.01)


def test_each_module_has_counts_of_its_own(ledger: RecompileLedger) -> None:
    first, second = (make_lazy(symbolic_trace(Small()), ledger) for _ in range(2))
    for _ in range(3):
        first.recompile()
    second.recompile()
    assert first.code
    counts = [ledger.of_module(module) for module in (first, second)]
    assert [(c.requested, c.performed, c.saved) for c in counts] == [(3, 1, 2), (1, 0, 1)]
    assert (first.stale, second.stale) == (False, True)
    assert make_lazy(first, ledger) is first
    assert ledger.of_module(first).requested == 3, "wrapping again keeps the counts"
    del second
    assert ledger.requested() == 4


def test_a_forced_recompile_names_its_line(ledger: RecompileLedger) -> None:
    module = make_lazy(symbolic_trace(Small()), ledger)
    module(torch.randn(2, 4))
    assert [e.where.partition(":")[0] for e in ledger.events] == ["test_lazy_module.py"]
    assert ledger.events[0].where.endswith("in test_a_forced_recompile_names_its_line")


def test_eager_modules_recompile_at_once_and_are_counted(ledger: RecompileLedger) -> None:
    with lazy_job(ledger, eager=True):
        module = symbolic_trace(Small())
        assert hasattr(module, "_code")
        for node in module.graph.find_nodes(op="call_function", target=torch.relu):
            node.target = torch.neg
        generated = module.recompile()
    assert "neg" in generated.src
    assert (ledger.requested(), ledger.performed()) == (2, 2)
    assert {e.trigger for e in ledger.events} == {"eager"}
    assert torch.jit.script(symbolic_trace(Small())) is not None
