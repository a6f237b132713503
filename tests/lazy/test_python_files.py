"""Graphs written as Python files run in a process that has only torch."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import nursery
import pytest
import torch
import torch.utils.checkpoint
from captured_graphs import Net, exported, graphs, of_dynamo
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils import _pytree as pytree

from conformance.comparing import unlike
from lazyfx.artifacts.python_files import python_file
from lazyfx.errors import ArtifactError, UnsupportedGraphError
from lazyfx.shared.source.assembly import GeneratedSource, generate

_RUNNER = """
import importlib, pathlib, pickle, sys, torch
from torch.utils._pytree import tree_leaves

class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("lazyfx", "lazyfx_server"):
            raise ImportError(name + " is hidden")

sys.meta_path.insert(0, Hidden())
sys.path.insert(0, sys.argv[1])
torch.set_num_threads(1)
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.py")):
    try:
        state = torch.load(path.with_suffix(".state"), weights_only=True)
        module = importlib.import_module(path.stem).Module(state)
        found = []
        for seed in range(2):
            args, kwargs = torch.load(path.with_suffix(".inputs"), weights_only=False)
            torch.manual_seed(seed)
            result = module(*args, **kwargs)
            found.append((result, args, kwargs))
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
    torch.save(found, path.with_suffix(".out"))
assert not any(name.startswith("lazyfx") for name in sys.modules)
"""


def run_alone(folder: Path) -> dict[str, Any]:
    """What each file of a folder gives in two calls, bound to the state next to it."""
    nursery.run("torch", ["-I", "-W", "ignore", "-c", _RUNNER, str(folder)], check=True)
    return {
        path.stem: torch.load(path, weights_only=False) for path in sorted(folder.glob("*.out"))
    }


def add(
    folder: Path, name: str, module: GraphModule, args: tuple[Any, ...], **kwargs: Any
) -> list[Any]:
    """Write a module, its state and its inputs; two calls of a copy of it here."""
    path = folder / f"{name}.py"
    python_file(module, generate(module), module, path.name).save(path)
    torch.save(module.state_dict(), path.with_suffix(".state"))
    torch.save((args, kwargs), path.with_suffix(".inputs"))
    here = copy.deepcopy(module)
    results = []
    for seed in range(2):
        given = torch.load(path.with_suffix(".inputs"), weights_only=False)
        torch.manual_seed(seed)
        results.append((here(*given[0], **given[1]), *given))
    return results


def test_files_compute_what_their_graphs_compute(tmp_path: Path) -> None:
    expected = {name: add(tmp_path, name, *each) for name, each in graphs().items()}
    x, scale = torch.randn(3, 4), torch.tensor(2.0)
    net = torch.export.export(Net().eval(), (x,), {"scale": scale}).module(check_guards=False)
    expected["net"] = add(tmp_path, "net", net, (x,), scale=scale)
    found = run_alone(tmp_path)
    assert found.keys() == expected.keys()
    different = {
        name: found[name] if isinstance(found[name], str) else unlike(found[name], results)
        for name, results in expected.items()
    }
    assert {name: reason for name, reason in different.items() if reason} == {}


def loaded(module: GraphModule, folder: Path, original: GraphModule | None = None) -> Any:
    path = folder / "model.py"
    python_file(module, generate(module), original or module, path.name).save(path)
    names: dict[str, Any] = {"__name__": "model", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), names)
    return names["Module"]


def test_it_is_bound_to_the_model_its_program_or_its_state(tmp_path: Path) -> None:
    model = Net().eval()
    x, scale = torch.randn(3, 4), torch.tensor(2.0)
    program = torch.export.export(model, (x,), {"scale": scale})
    make = loaded(program.module(check_guards=False), tmp_path)
    for root in (model, program, model.state_dict(), {"": 0, **model.state_dict()}):
        bound = make(root)
        assert unlike(bound(x, scale=scale), model(x, scale=scale)) == ""
    assert make(model).linear.weight is model.linear.weight
    with pytest.raises(LookupError, match=r"norm\.weight.*give the model"):
        make({})
    parts = {"linear": model.linear, "norm": model.norm, "table": model.table}
    assert unlike(make(parts)(x, scale=scale), model(x, scale=scale)) == ""


def test_what_is_in_no_state_dict_is_beside_it(tmp_path: Path) -> None:
    class Holding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.register_buffer("hidden", torch.arange(3.0), persistent=False)
            self.plain = torch.full((3,), 3.0)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight + self.hidden - self.plain * torch.tensor([1.0, 2.0, 3.0])

    model, x = Holding(), torch.randn(3)
    make = loaded(exported(model, x), tmp_path)
    held = torch.load(tmp_path / "model.constants.pt", weights_only=True)
    assert "weight" not in held
    assert len(held) == 3
    assert torch.equal(make({"weight": model.weight})(x), model(x))


def test_without_constants_there_is_one_file(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    loaded(symbolic_trace(model), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.py"]


def test_what_passes_moved_and_made_is_found(tmp_path: Path) -> None:
    """A graph split in two: the tensors have other paths than in the model."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.BatchNorm1d(3)).eval()
    original = symbolic_trace(model)
    inner = GraphModule(original, original.graph)
    outer = nn.Module()
    outer.submod_0 = inner
    graph = torch.fx.Graph()
    made = graph.get_attr("made")
    outer.register_buffer("made", torch.tensor([1.0, 2.0, 3.0]))
    called = graph.call_module("submod_0", (graph.placeholder("x"),))
    graph.output(graph.call_function(torch.add, (called, made)))
    graph.nodes  # noqa: B018 - in this order
    module = GraphModule(outer, graph)
    x = torch.randn(2, 3)
    bound = loaded(module, tmp_path, original)(model.state_dict())
    torch.testing.assert_close(bound(x), model(x) + outer.made)
    assert not bound.submod_0.get_submodule("2").training


def test_names_of_a_server_choose_nothing(tmp_path: Path) -> None:
    """What its imports bind is seen by its own graph only."""
    module = symbolic_trace(lambda x: torch.relu(x))
    source = GeneratedSource(
        "\n\n\ndef forward(self, x):\n    relu = Module(x);  x = None\n    return relu\n    ",
        "from torch import relu as Module",
    )
    path = tmp_path / "model.py"
    python_file(module, source, module, path.name).save(path)
    names: dict[str, Any] = {"__name__": "model", "__file__": str(path)}
    exec(compile(path.read_text(), str(path), "exec"), names)
    assert names["Module"]()(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


def test_a_nested_graph_without_source_is_an_error() -> None:
    module, _ = graphs()["branch_export"]
    with pytest.raises(ArtifactError, match="no source for the nested graph"):
        python_file(module, GeneratedSource("", ""), module, "model.py")


def test_what_cannot_be_written_is_refused_with_a_way_out() -> None:
    module = symbolic_trace(nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(3, 3))))
    with pytest.raises(UnsupportedGraphError, match=r"parametrizations(\n|.)*save_exported"):
        python_file(module, generate(module), module, "model.py")


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, x: torch.Tensor) -> torch.Tensor:
        context.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * context.saved_tensors[0].cos()


def test_graphs_that_their_operator_reads_are_refused() -> None:
    """Where it is loaded such a graph is a function, and has no nodes."""

    def again(x: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(torch.sin, x, use_reentrant=False)

    x = torch.ones(3, requires_grad=True)
    for function in (Sine.apply, again):
        module = of_dynamo(lambda y, f=function: f(y) * 2, x)
        with pytest.raises(UnsupportedGraphError, match=r"reads the graph(\n|.)*save_pickle"):
            python_file(module, generate(module), module, "model.py")


def test_memory_in_two_files_is_refused_where_the_graph_writes() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("a", torch.arange(6.0), persistent=False)
            self.register_buffer("b", self.a[1:4])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.a.add_(1)
            return self.b + x

    module = exported(Model(), torch.ones(3))
    with pytest.raises(UnsupportedGraphError, match=r"shares memory(\n|.)*save_pickle"):
        python_file(module, generate(module), module, "model.py")


def test_classes_like_dicts_come_back_as_dicts(tmp_path: Path) -> None:
    from transformers.modeling_outputs import BaseModelOutput

    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> Any:
            return BaseModelOutput(last_hidden_state=x + 1, hidden_states=(x, x * 2))

    x = torch.ones(2)
    found = loaded(torch.export.export(Model(), (x,)).module(check_guards=False), tmp_path)()(x)
    assert type(found) is dict
    assert pytree.tree_structure(found) == pytree.tree_structure(dict(Model()(x)))
