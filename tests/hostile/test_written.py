"""Generated source is compared with its graph; differences are counted and never served."""

from __future__ import annotations

import math
import operator
import pickle

import pytest
import torch
from torch.fx import Graph, GraphModule

from lazyfx.shared.source import SourceMismatchError, check_source
from lazyfx_server.jobs.artifact_kinds import render_torchscript
from lazyfx_server.lazy import RecompileLedger, make_lazy
from lazyfx_server.lazy.lazy_module import generate_source


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = torch.nn.ModuleList([torch.nn.Linear(4, 4), torch.nn.Dropout(0.1)])
        self.register_buffer("scale", torch.ones(4))

    def forward(self, x, y=2.5, *rest, **more):
        x = self.parts[0](x) * -y + self.scale
        x = self.parts[1](x)[..., 1:3].transpose(-1, -2).contiguous()
        x = torch.clamp(x, min=-math.inf).to(torch.float64, memory_format=torch.contiguous_format)
        return {"out": (x.shape, [x.to(device="cpu"), x.T]), "pi": (x == 1j, None)}


def traced() -> GraphModule:
    module = torch.fx.symbolic_trace(Net())
    first, *_, last = module.graph.nodes
    first.type = last.type = torch.Tensor
    return module


def exported() -> GraphModule:
    program = torch.export.export(torch.nn.Linear(3, 3), (torch.ones(2, 3),))
    return program.module(check_guards=False)


def in_place() -> GraphModule:
    graph = Graph()
    x, y = graph.placeholder("x"), graph.placeholder("y")
    z = graph.call_function(operator.iadd, (x, y))
    graph.call_function(operator.setitem, (z, slice(0, 1, None), 3))
    graph.output(graph.call_function(operator.floordiv, (graph.call_method("neg", (z,)), 2)))
    return GraphModule(torch.nn.Module(), graph)


MODULES = {"traced": traced, "exported": exported, "in place": in_place}


def source_of(module: GraphModule) -> tuple[str, dict[str, object]]:
    generated = module.graph.python_code("self")
    return generated.src, generated.globals


@pytest.mark.parametrize("case", MODULES)
def test_what_torch_writes_is_taken(case: str) -> None:
    module = MODULES[case]()
    check_source(*source_of(module), module.graph)


# What is written, and what might be there instead.
CHANGES = {
    "another operator": ("* neg", "+ neg"),
    "another number": ("slice(1, 3, None)", "slice(1, 4, None)"),
    "the sign of a number": ("-1, -2", "1, -2"),
    "another function": ("torch.clamp", "torch.relu"),
    "another method": (".contiguous()", ".clone()"),
    "another constant": ("torch.float64", "torch.float32"),
    "another keyword": ("min = -inf", "max = -inf"),
    "a keyword's value": ("min = -inf", "min = inf"),
    "another module": ('getattr(self.parts, "0")', 'getattr(self.parts, "1")'),
    "another attribute": ("self.scale", "self.bias"),
    "another default": ("y = 2.5", "y = 2.0"),
    "another key": ("'out'", "'in'"),
    "a default that runs": ("y = 2.5", "y = print(1)"),
    "an argument less": (", **more", ""),
    "a value twice": ("neg = -y", "neg = -x"),
    "a statement more": ("    return", "    print(1)\n    return"),
    "a statement on the same line": ("neg = -y", "neg = -y; import os"),
    "something behind the end": None,
    "something before": None,
    "an annotation that runs": ("x : torch.Tensor", "x : print(1)"),
    "a decorator": ("def forward", "@print\ndef forward"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_difference_is_found(change: str) -> None:
    module = traced()
    code, names = source_of(module)
    if change == "something behind the end":
        other = f"{code}\n    return None\n"
    elif change == "something before":
        other = f"import os\n{code}"
    else:
        written, instead = CHANGES[change]
        assert written in code, code
        other = code.replace(written, instead, 1)
    with pytest.raises(SourceMismatchError):
        check_source(other, names, module.graph)


def test_invalid_python_is_reported_as_such() -> None:
    module = traced()
    code, names = source_of(module)
    with pytest.raises(SyntaxError):
        check_source(code.replace("return", "retrun", 1), names, module.graph)


def test_a_swapped_return_of_a_flattened_graph() -> None:
    module = exported()
    code, names = source_of(module)
    for written, instead in (("self._in_spec", "self._out_spec"), ("tree_unflatten", "tree_map")):
        assert written in code
        with pytest.raises(SourceMismatchError):
            check_source(code.replace(written, instead, 1), names, module.graph)


def test_a_lazy_module_never_runs_what_its_graph_does_not_say(monkeypatch) -> None:
    module = make_lazy(in_place(), RecompileLedger())
    module.recompile()
    honest = Graph.python_code

    def lying(self, *args, **kwargs):
        generated = honest(self, *args, **kwargs)
        generated.src = generated.src.replace("def forward", "torch.ran = True\ndef forward")
        return generated

    monkeypatch.setattr(Graph, "python_code", lying)
    with pytest.raises(SourceMismatchError):
        module(torch.ones(2), torch.ones(2))
    with pytest.raises(SourceMismatchError):
        generate_source(module, RecompileLedger(), "code")
    assert not hasattr(torch, "ran")
    monkeypatch.undo()
    assert torch.equal(module(torch.ones(2), torch.ones(2)), torch.tensor([-2.0, -1.0]))


def test_no_torchscript_is_made_of_what_its_graph_does_not_say(monkeypatch) -> None:
    module = torch.fx.symbolic_trace(lambda x: torch.relu(x) * 2)
    honest = Graph.python_code

    def lying(self, *args, **kwargs):
        generated = honest(self, *args, **kwargs)
        generated.src = generated.src.replace("* 2", "* 3")
        return generated

    assert b"relu" in render_torchscript(module, RecompileLedger())
    monkeypatch.setattr(Graph, "python_code", lying)
    with pytest.raises(SourceMismatchError):
        render_torchscript(module, RecompileLedger())


def test_checked_source_arrives(client, tmp_path) -> None:
    assert "+= y" in client.compile(in_place(), passes=["dead_code_elimination"]).code
    module = torch.fx.symbolic_trace(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU()))
    handle = client.compile(module, passes=["dead_code_elimination"])
    loaded = pickle.loads(handle.save_pickle(tmp_path / "module.pkl").read_bytes())
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), module(x))
