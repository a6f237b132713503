"""What torch's own test of lazy modules (test/fx/test_lazy_graph_module.py) checks, in a job.

One test for each of torch's, by its name, and for what its file promises beyond them.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest
import torch
from torch import fx, nn
from torch.fx._lazy_graph_module import (
    _force_skip_lazy_graph_module,
    _get_graph_module_cls,
    _LazyGraphModule,
    _make_graph_module,
)
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.passes.split_module import split_module

from lazyfx_server.lazy import LazyModule, RecompileLedger, lazy_job, make_lazy


def sine(x):  # type: ignore[no-untyped-def] # TorchScript cannot read annotations of fx
    return x.sin()


def put_cosines(module: fx.GraphModule) -> None:
    for node in module.graph.nodes:
        if node.target == "sin":
            node.target = "cos"


@pytest.fixture
def ledger() -> Iterator[RecompileLedger]:
    ledger = RecompileLedger()
    with lazy_job(ledger):
        yield ledger


@pytest.fixture
def module(ledger: RecompileLedger) -> LazyModule:
    made = fx.symbolic_trace(sine)
    assert isinstance(made, LazyModule)
    assert isinstance(made, _LazyGraphModule)
    return made


X = torch.randn(2, 3)


def test_replace_sin_with_cos(module: LazyModule, ledger: RecompileLedger) -> None:
    put_cosines(module)
    module.recompile()
    assert torch.equal(module(X), X.cos())
    done = ledger.performed()
    assert "cos()" in module.print_readable(False)
    assert ledger.performed() == done, "print_readable needs no generated code"


def test_call_forward_directly(module: LazyModule) -> None:
    put_cosines(module)
    module.recompile()
    assert torch.equal(module.forward(X), X.cos())


def test_needs_recompile(module: LazyModule) -> None:
    assert module._needs_recompile()
    assert module.stale
    module(X)
    assert not module._needs_recompile()
    assert not module.stale


def test_multi_recompile(module: LazyModule, ledger: RecompileLedger) -> None:
    assert torch.equal(module(X), X.sin())
    put_cosines(module)
    assert not module.stale, "editing a graph marks nothing"
    module.recompile()
    assert module.stale
    assert torch.equal(module(X), X.cos())
    assert not module.stale
    assert ledger.performed() == 2


def test_accessing_code_cause_recompiling(module: LazyModule) -> None:
    assert "sin" in module.code
    assert not module.stale


def test_graph_module_str(module: LazyModule) -> None:
    assert "sin" in str(module)
    assert not module.stale


def test_recapture_with_make_fx(module: LazyModule) -> None:
    again = make_fx(module)(X)
    assert isinstance(again, LazyModule)
    assert again.stale
    assert not module.stale, "make_fx calls it"


def test_recapture_with_symbolic_trace(module: LazyModule, ledger: RecompileLedger) -> None:
    again = fx.symbolic_trace(module)
    assert isinstance(again, LazyModule)
    assert again.stale
    assert not module.stale
    assert ledger.performed() == 1


def test_recapture_with_dynamo(module: LazyModule) -> None:
    torch._dynamo.reset()
    assert torch.equal(torch.compile(module, backend="eager")(X), X.sin())
    assert not module.stale
    torch._dynamo.reset()


def test_dynamo_innermost_fn(module: LazyModule) -> None:
    compiled = torch._dynamo.optimize("eager")(module)
    innermost = torch._dynamo.eval_frame.innermost_fn(compiled.forward)
    assert torch.equal(innermost(X), X.sin())
    torch._dynamo.reset()


def test_save_lazy_forward(module: LazyModule, ledger: RecompileLedger) -> None:
    saved = module.forward
    for _ in range(10):
        assert torch.equal(saved(X), X.sin())
    assert ledger.performed() == 1


def test_pickle(module: LazyModule) -> None:
    loaded = pickle.loads(pickle.dumps(module))
    assert isinstance(loaded, LazyModule)
    assert "sin" in loaded.code


def test_package_fx_simple(module: LazyModule, tmp_path: object) -> None:
    path = f"{tmp_path}/module.pt"
    with torch.package.PackageExporter(path) as exporter:
        exporter.extern("**")
        exporter.save_pickle("module", "module.pkl", module)
    loaded = torch.package.PackageImporter(path).load_pickle("module", "module.pkl")
    assert torch.equal(loaded(X), X.sin())


def test_make_graph_module(module: LazyModule) -> None:
    named = _make_graph_module(module, module.graph, class_name="Named")
    assert isinstance(named, LazyModule)
    assert type(named).__name__ == "Named"
    assert type(_make_graph_module(module, module.graph)).__name__ == "GraphModule"


def test_a_class_asked_for_by_name_is_lazy_too(module: LazyModule) -> None:
    """Otherwise: torch keeps `graph_module_cls=GraphModule` eager, which is how passes escape."""
    plain = _make_graph_module(module, module.graph, graph_module_cls=fx.GraphModule)
    assert isinstance(plain, LazyModule)
    assert issubclass(_get_graph_module_cls(), fx.GraphModule)


def test_force_skip_makes_eager_modules(ledger: RecompileLedger) -> None:
    asked = ledger.requested()
    with _force_skip_lazy_graph_module():
        eager = fx.symbolic_trace(sine)
    assert not isinstance(eager, _LazyGraphModule)
    assert "sin" in eager.__dict__["_code"]
    assert torch.jit.script(eager)(X).equal(X.sin())
    assert ledger.requested() == asked


def test_force_recompile_does_exactly_one(module: LazyModule, ledger: RecompileLedger) -> None:
    for _ in range(3):
        _LazyGraphModule.force_recompile(module)
        module.real_recompile()
    assert ledger.performed() == 1
    module.recompile()
    module.recompile()
    _LazyGraphModule.force_recompile(module)
    assert ledger.performed() == 2


def test_from_graphmodule_copies_nothing() -> None:
    ledger = RecompileLedger()
    plain = fx.symbolic_trace(nn.Linear(3, 3))
    graph, parameters = plain.graph, list(plain.parameters())
    wrapped = make_lazy(plain, ledger)
    assert wrapped is plain
    assert wrapped.graph is graph
    assert all(a is b for a, b in zip(wrapped.parameters(), parameters, strict=True))
    wrapped.recompile()
    assert make_lazy(wrapped, ledger) is wrapped
    assert _LazyGraphModule.from_graphmodule(wrapped) is wrapped
    assert ledger.of_module(wrapped).requested == 1


def test_recompile_marks_only(module: LazyModule, ledger: RecompileLedger) -> None:
    assert module.recompile() is None
    assert "_code" not in module.__dict__
    assert ledger.performed() == 0


def test_57_partitions_are_lazy_too(ledger: RecompileLedger) -> None:
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(57))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = torch.relu(layer(x)) + 1
            return x

    model = Deep()
    traced = fx.symbolic_trace(model)
    numbers = {node: max(0, i - 1) // 3 for i, node in enumerate(traced.graph.nodes)}
    split = split_module(traced, None, lambda node: min(56, numbers[node]))
    parts = [child for child in split.children() if isinstance(child, fx.GraphModule)]
    assert len(parts) == 57
    assert all(isinstance(part, LazyModule) and part.stale for part in parts)
    assert ledger.requested() >= 58
    assert ledger.performed() == 0
    x = torch.randn(2, 4)
    assert torch.allclose(split(x), model(x))
    assert ledger.performed() == 58, "one for each module that the call needed"
    assert not any(part.stale for part in parts)
