"""Pickles and packages put together from source load in a process with torch alone."""

import io
import operator
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.fx import GraphModule, symbolic_trace

from lazyfx.assembly import GeneratedSource, generate, package_module, pickle_module

Assemble = Callable[[GraphModule, GeneratedSource], bytes]

# -I keeps the current folder and user packages out; the finder refuses our own packages.
LOADER = """
import sys, io, pickle, torch

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lazyfx", "lazyfx_server"):
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hidden())
kind, source, out = sys.argv[1:]
data = open(source, "rb").read()
if kind == "pickle":
    module = pickle.loads(data)
else:
    module = torch.package.PackageImporter(io.BytesIO(data)).load_pickle("module", "module.pkl")
args, kwargs = torch.load(source + ".inputs")
results = [module(*args, **kwargs), pickle.loads(pickle.dumps(module))(*args, **kwargs)]
torch.save((results, dict(module.state_dict())), out)
assert not any(name.startswith("lazyfx") for name in sys.modules)
"""

BOTH = pytest.mark.parametrize(
    ("kind", "assemble"), [("pickle", pickle_module), ("package", package_module)]
)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.register_buffer("table", torch.arange(12.0).reshape(3, 4))

    def forward(self, x: torch.Tensor, *, scale: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.linear(self.norm(x)) * scale + self.table[1:2].exp()
        return {"y": y, "pair": (y + 1, y - 1)}


def load(data: bytes, kind: str) -> nn.Module:
    if kind == "pickle":
        loaded = pickle.loads(data)
    else:
        loaded = torch.package.PackageImporter(io.BytesIO(data)).load_pickle("module", "module.pkl")
    assert isinstance(loaded, nn.Module)
    return loaded


def load_elsewhere(
    data: bytes, kind: str, folder: Path, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[list[object], dict[str, torch.Tensor]]:
    source, out = folder / "module", folder / "out"
    source.write_bytes(data)
    torch.save((args, kwargs), f"{source}.inputs")
    subprocess.run(
        [sys.executable, "-I", "-c", LOADER, kind, str(source), str(out)], check=True, timeout=120
    )
    return torch.load(out)  # type: ignore[no-any-return]


@BOTH
def test_an_export_module_keeps_its_calling_convention_elsewhere(
    kind: str, assemble: Assemble, tmp_path: Path
) -> None:
    model = Net().eval()
    x, scale = torch.randn(3, 4), torch.tensor(2.0)
    module = torch.export.export(model, (x,), {"scale": scale}).module(check_guards=False)
    data = assemble(module, generate(module))
    results, state = load_elsewhere(data, kind, tmp_path, (x,), {"scale": scale})
    for result in results:
        torch.testing.assert_close(result, model(x, scale=scale))
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@BOTH
def test_no_code_is_generated(
    kind: str, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.ReLU()))
    source = generate(module)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("code was generated")

    with monkeypatch.context() as patched:
        patched.setattr(torch.fx.Graph, "python_code", refuse)
        patched.setattr(GraphModule, "recompile", refuse)
        data = assemble(module, source)
    x = torch.randn(2, 4)
    assert torch.equal(load(data, kind)(x), module(x))


def test_the_pickle_says_what_torch_would_say() -> None:
    module = symbolic_trace(nn.Sequential(nn.Linear(4, 4), nn.Dropout(), nn.ReLU()))
    function, (body, import_block) = module.__reduce__()
    source = generate(module)
    ours = load(pickle_module(module, source), "pickle")
    theirs = function(dict(body), import_block)
    assert ours.code == theirs.code
    assert (source.code, source.import_block) == (body["_code"], import_block)
    assert [n.op for n in ours.graph.nodes] == [n.op for n in theirs.graph.nodes]
    assert ours.training == theirs.training


@BOTH
def test_children_load_and_are_not_generated_again(
    kind: str, assemble: Assemble, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Cond(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.cond(x.sum() > 0, lambda a: a + 1, lambda a: a * 2, (self.linear(x),))

    model = Cond()
    program = torch.export.export(model, (torch.randn(2, 4),), strict=False)
    module = program.module(check_guards=False)
    source = generate(module)
    assert len(source.children) == 2
    with monkeypatch.context() as patched:
        patched.setattr(torch.fx.Graph, "python_code", None)
        data = assemble(module, source)
    # torch cannot trace `cond` again while it loads a pickle of a caller of it,
    # so the children are checked by themselves.
    del data
    for path, child in source.children.items():
        body = module.get_submodule(path)
        assert isinstance(body, GraphModule)
        loaded = load(assemble(body, child), kind)
        args = [torch.randn(2, 4) for n in body.graph.nodes if n.op == "placeholder"]
        torch.testing.assert_close(loaded(*args), body(*args))


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
    for source in (generate(module), GeneratedSource(*_text_of(module))):
        loaded = load(assemble(module, source), kind)
        assert torch.equal(loaded(x), model(x))
    assert isinstance(module.inner.child, GraphModule), "the module itself is as it was"


def _text_of(module: GraphModule) -> tuple[str, str]:
    source = generate(module)
    return source.code, source.import_block


@BOTH
def test_buffers_stay_buffers(kind: str, assemble: Assemble) -> None:
    """torch's own pickle runs this update once, while loading, and loses it."""
    model = nn.Sequential(nn.BatchNorm1d(4)).train()
    x = torch.randn(8, 4)
    module = torch.export.export(model, (x,)).module(check_guards=False)
    loaded = load(assemble(module, generate(module)), kind)
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
    loaded = load(assemble(module, generate(module)), kind)
    assert all(p.is_meta for p in loaded.parameters())
    loaded.load_state_dict(model.state_dict(), assign=True)
    torch.testing.assert_close(loaded(x), model(x))


def test_a_lazy_module_is_assembled_without_being_realised() -> None:
    from lazyfx_server.lazy import RecompileLedger, generate_source, make_lazy

    ledger = RecompileLedger()
    model = nn.Sequential(nn.Linear(4, 4), nn.GELU())
    module = make_lazy(symbolic_trace(model), ledger)
    source = generate_source(module, ledger, "pickle")
    x = torch.randn(2, 4)
    for data, kind in (
        (pickle_module(module, source), "pickle"),
        (package_module(module, source), "package"),
    ):
        assert torch.equal(load(data, kind)(x), model(x))
    assert [event.trigger for event in ledger.events] == ["pickle"]


@BOTH
def test_calls_that_no_import_finds_are_defined(kind: str, assemble: Assemble) -> None:
    from torch import _numpy as arrays
    from torch._dynamo import utils

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    flipped = graph.call_function(torch.Tensor.neg, (x,))
    lengths = graph.call_function(
        utils.numpy_to_tensor_wrapper(arrays.linalg.norm), (flipped,), {"axis": 1, "keepdims": True}
    )
    plain = graph.call_function(utils.numpy_to_tensor_wrapper(arrays.sqrt), (lengths,))
    summed = graph.call_function(utils.numpy_operator_wrapper(operator.add), (plain, x))
    turned = graph.call_function(utils.numpy_attr_wrapper, (summed, "T"))
    graph.output(graph.call_function(utils.numpy_method_wrapper("reshape"), (turned, -1)))
    module = GraphModule(nn.Module(), graph)
    loaded = load(assemble(module, generate(module)), kind)
    inputs = torch.randn(3, 4)
    assert torch.equal(loaded(inputs), module(inputs))
