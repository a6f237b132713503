"""Saved modules compute in a process with torch alone what they compute here."""

import importlib
import io
import operator
import pickle
from collections.abc import Callable
from pathlib import Path

import nursery
import pytest
import torch
from captured_graphs import Net, exported, graphs, into_fresh
from elsewhere import Elsewhere
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from conformance.comparing import unlike
from lazyfx.artifacts.python_files import python_file
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.formats.pickling import package_module, pickle_module
from lazyfx.shared.source.assembly import generate

Assemble = Callable[[GraphModule], bytes]
KINDS = {"pickle": pickle_module, "package": package_module}
BOTH = pytest.mark.parametrize(("kind", "assemble"), list(KINDS.items()))


def test_what_is_loaded_computes_what_was_saved(tmp_path: Path) -> None:
    saved = Elsewhere(tmp_path)
    for name, (module, args) in graphs().items():
        saved.add(name, module, args)
    assert saved.differences() == {}


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyOptions"), reason="this torch lacks it")
def test_options_that_a_graph_makes_and_operators_that_an_import_registers(tmp_path: Path) -> None:
    x, weight, target = torch.randn(6, 4), torch.randn(5, 4), torch.randint(0, 5, (6,))
    graph = torch.fx.Graph()
    given = [graph.placeholder(name) for name in ("x", "weight", "target")]
    options = graph.call_function(nn.LinearCrossEntropyOptions, (), {"batch_chunk_size": 2})
    loss = nn.functional.linear_cross_entropy
    graph.output(graph.call_function(loss, tuple(given), {"options": options}))
    called = GraphModule(nn.Module(), graph)
    chosen = nn.LinearCrossEntropyOptions(batch_chunk_size=2)
    traced = exported(lambda *a: loss(*a, options=chosen), x, weight, target)
    assert "torch_nn._linear_cross_entropy" in traced.code
    saved = Elsewhere(tmp_path)
    for name, module in (("called", called), ("traced", traced)):
        saved.add(name, wire_copy(module), (x, weight, target))
    assert saved.differences() == {}


_OWN_OPERATORS = """
import torch
@torch.library.custom_op("own_of_test::tripled", mutates_args=())
def tripled(x: torch.Tensor) -> torch.Tensor:
    return x * 3
tripled.register_fake(torch.empty_like)
"""
_LOADING = """
import pickle, sys, torch
folder, kind = sys.argv[1:]
sys.path.insert(0, folder)
if kind == "code":
    from saved_code import Module
    module = Module({})
elif kind == "pickle":
    module = pickle.load(open(folder + "/saved", "rb"))
else:
    module = torch.package.PackageImporter(folder + "/saved").load_pickle("module", "module.pkl")
print(module(torch.ones(2)).tolist())
"""


@BOTH
def test_the_module_of_a_custom_operator_is_imported_by_what_is_loaded(
    kind: str, assemble: Assemble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own_operators_of_test.py").write_text(_OWN_OPERATORS)
    monkeypatch.syspath_prepend(str(tmp_path))
    importlib.import_module("own_operators_of_test")
    traced = exported(lambda x: torch.ops.own_of_test.tripled(x) + 1, torch.ones(2))
    (tmp_path / "saved").write_bytes(assemble(traced))
    path = tmp_path / "saved_code.py"
    python_file(traced, generate(traced), traced, path.name).save(path)
    for saved in (kind, "code"):
        program = ["-I", "-W", "ignore", "-c", _LOADING, str(tmp_path), saved]
        assert nursery.run("torch", program, check=True).stdout == "[4.0, 4.0]\n"


def wire_copy(module: GraphModule) -> GraphModule:
    """As a client gets it back from a server."""
    encoded = wire.encode(module)
    return wire.decode(encoded.body, encoded.presentation)


def test_an_export_module_keeps_its_calling_convention_elsewhere(tmp_path: Path) -> None:
    model = Net().eval()
    x, scale = torch.randn(3, 4), torch.tensor(2.0)
    module = torch.export.export(model, (x,), {"scale": scale}).module(check_guards=False)
    saved = Elsewhere(tmp_path)
    saved.add("net", module, (x,), {"scale": scale}, calls=model)
    assert saved.differences() == {}


def test_fresh_memory_and_draws_are_fresh_at_each_call() -> None:
    x, index = torch.ones(3), torch.tensor([2, 2, 3])
    for module in (exported(into_fresh, x, index), make_fx(into_fresh)(x, index)):
        for kind, assemble in KINDS.items():
            loaded = load(assemble(module), kind)
            for _ in range(2):
                assert loaded(x, index).tolist() == [0, 0, 2, 1]
    drawn = load(KINDS["pickle"](exported(lambda x: x + torch.randn(3), x)), "pickle")
    assert not torch.equal(drawn(x), drawn(x))


def test_pickle_load_opens_the_file_and_torch_load_does_not(tmp_path: Path) -> None:
    """As docs/coverage.md says: torch.load reads what torch.save writes."""
    path = tmp_path / "module.pkl"
    module = symbolic_trace(nn.Linear(2, 2))
    path.write_bytes(KINDS["pickle"](module))
    with path.open("rb") as file:
        assert torch.equal(pickle.load(file)(torch.ones(2)), module(torch.ones(2)))
    with pytest.raises(RuntimeError, match="Invalid magic number"):
        torch.load(path, weights_only=False)


def load(data: bytes, kind: str) -> nn.Module:
    if kind == "pickle":
        loaded = pickle.loads(data)
    else:
        loaded = torch.package.PackageImporter(io.BytesIO(data)).load_pickle("module", "module.pkl")
    assert isinstance(loaded, nn.Module)
    return loaded


@BOTH
def test_nothing_is_generated_for_it_and_nothing_traced_when_it_is_loaded(
    kind: str, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("code was generated, or a graph traced")

    with monkeypatch.context() as patched:
        patched.setattr(torch.fx.Graph, "python_code", refuse)
        patched.setattr(GraphModule, "recompile", refuse)
        data = assemble(module)
    monkeypatch.setattr(torch.fx.Tracer, "trace", refuse)
    x = torch.randn(2, 4)
    assert torch.equal(load(data, kind)(x), module(x))


@BOTH
def test_the_graph_is_the_same(kind: str, assemble: Assemble) -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ReLU()).eval())
    loaded = load(assemble(module), kind)
    assert isinstance(loaded, GraphModule)
    assert loaded.code == module.code
    assert str(loaded.graph) == str(module.graph)
    assert type(loaded).__name__ == type(module).__name__
    assert [m.training for m in loaded.modules()] == [m.training for m in module.modules()]
    # torch's own pickle of what was loaded works where tracing does.
    again = pickle.loads(pickle.dumps(loaded))
    assert torch.equal(again(torch.ones(4)), module(torch.ones(4)))


@BOTH
def test_called_children_inside_plain_modules(kind: str, assemble: Assemble) -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Module()
            self.inner.child = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
            self.again = self.inner.child

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.child(x) + self.again(x) * 2

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return isinstance(m, GraphModule)

    model = Parent()
    module = GraphModule(model, Tracer().trace(model))
    x = torch.randn(2, 4)
    loaded = load(assemble(module), kind)
    assert torch.equal(loaded(x), model(x))
    assert isinstance(module.inner.child, GraphModule), "the module itself is as it was"


@BOTH
def test_memory_that_is_shared_stays_shared(kind: str, assemble: Assemble) -> None:
    root = nn.Module()
    root.one = root.other = nn.Parameter(torch.ones(3, 3))
    root.register_buffer("row", torch.zeros(4)[1:])
    root.register_buffer("turned", root.row.unsqueeze(0).t())
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    product = graph.call_method("matmul", (x, graph.get_attr("one")))
    row = graph.call_method("add_", (graph.get_attr("row"), 1))
    other = graph.call_method("matmul", (row, graph.get_attr("other")))
    turned = graph.call_method("sum", (graph.get_attr("turned"),))
    graph.output((product, other, turned))
    module = GraphModule(root, graph)
    loaded = load(assemble(module), kind)
    assert loaded.one is loaded.other
    assert loaded.one.requires_grad
    x = torch.randn(2, 3)
    for _ in range(2):
        torch.testing.assert_close(loaded(x), module(x))
    loaded.row.fill_(5)
    assert loaded.turned.tolist() == [[5.0]] * 3


@BOTH
def test_buffers_stay_buffers(kind: str, assemble: Assemble) -> None:
    """torch's own pickle runs this update once, while loading, and loses it."""
    model = nn.Sequential(nn.BatchNorm1d(4)).train()
    x = torch.randn(8, 4)
    module = torch.export.export(model, (x,)).module(check_guards=False)
    loaded = load(assemble(module), kind)
    for expected in (1, 2):
        torch.testing.assert_close(loaded(x), model(x))
        state = {k.rsplit(".", 1)[-1]: v for k, v in loaded.state_dict().items()}
        assert state["num_batches_tracked"] == expected
        torch.testing.assert_close(state["running_mean"], model[0].running_mean)


@BOTH
def test_meta_parameters_travel_and_are_assigned_later(kind: str, assemble: Assemble) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    x = torch.randn(2, 4)
    module = torch.export.export(model, (x,)).module(check_guards=False).to("meta")
    loaded = load(assemble(module), kind)
    assert all(p.is_meta for p in loaded.parameters())
    loaded.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(loaded(x), model(x))


def test_a_lazy_module_is_saved_without_being_realised() -> None:
    from lazyfx_server.lazy import RecompileLedger, make_lazy

    ledger = RecompileLedger()
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    module = make_lazy(symbolic_trace(model), ledger)
    x = torch.randn(2, 4)
    for kind, assemble in KINDS.items():
        assert torch.equal(load(assemble(module), kind)(x), model(x))
    assert ledger.events == []


@BOTH
def test_calls_that_no_import_finds_are_made_again(kind: str, assemble: Assemble) -> None:
    from torch import _numpy as arrays
    from torch._dynamo import utils

    from lazyfx.shared.wire.targets.canonical_callables import lower_version_count_by_1

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    flipped = graph.call_function(torch.Tensor.neg, (x,))
    lowered = graph.call_function(lower_version_count_by_1, (flipped,))
    lengths = graph.call_function(
        utils.numpy_to_tensor_wrapper(arrays.linalg.norm), (lowered,), {"axis": 1, "keepdims": True}
    )
    plain = graph.call_function(utils.numpy_to_tensor_wrapper(arrays.sqrt), (lengths,))
    summed = graph.call_function(utils.numpy_operator_wrapper(operator.add), (plain, x))
    turned = graph.call_function(utils.numpy_attr_wrapper, (summed, "T"))
    graph.output(graph.call_function(utils.numpy_method_wrapper("reshape"), (turned, -1)))
    module = GraphModule(nn.Module(), graph)
    loaded = load(assemble(module), kind)
    inputs = torch.randn(3, 4)
    assert torch.equal(loaded(inputs), module(inputs))


@BOTH
def test_numbers_that_torch_writes_wrong_are_right(kind: str, assemble: Assemble) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    bases = (-2, -2.0, 2, -1j, complex(0.0, -1.0), -0.0)
    powers = [graph.call_function(operator.pow, (base, x)) for base in bases]
    numbers = (complex(-0.0, -1e-28), -1j, complex(0.0, -0.0), 1 + 2j, complex("inf"), -2 - 3j)
    factors = [graph.call_function(torch.mul, (powers[0], number)) for number in numbers]
    graph.output((*powers, *factors))
    module = GraphModule(nn.Module(), graph)
    loaded = load(assemble(module), kind)
    x = torch.tensor([2.0, 1.0])
    expected = torch.fx.Interpreter(module).run(x)
    assert unlike(loaded(x), expected) == ""
    signs = [
        [
            torch.signbit(part).tolist()
            for value in values
            for part in torch.view_as_real(value).unbind(-1)
        ]
        for values in (loaded(x)[len(bases) :], expected[len(bases) :])
    ]
    assert signs[0] == signs[1]
    assert " 2 ** x" in loaded.code, "what torch writes right stays"


@BOTH
def test_what_cannot_be_saved_is_refused_with_a_way_out(kind: str, assemble: Assemble) -> None:
    parametrized = nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))
    with pytest.raises(UnsupportedGraphError, match=r"parametrized.*(\n|.)*save_exported_program"):
        assemble(symbolic_trace(nn.Sequential(parametrized)))

    def own(x: torch.Tensor) -> torch.Tensor:
        return x

    graph = torch.fx.Graph()
    graph.output(graph.call_function(own, (graph.placeholder("x"),)))
    with pytest.raises(UnsupportedGraphError, match=r"own.*only torch"):
        assemble(GraphModule(nn.Module(), graph))
