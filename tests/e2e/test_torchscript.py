"""TorchScript artifacts: they load with torch alone and compute what the graph computes."""

from __future__ import annotations

import io
from pathlib import Path

import models
import pytest
import torch
from harness import DCE, artifact, compile_request, connected, graph_of, metrics, refused, total
from torch import nn
from torch.fx import symbolic_trace
from torch.utils._pytree import tree_leaves
from transformers.modeling_outputs import BaseModelOutput
from wire import captures

import lazyfx
from lazyfx.errors import UnsupportedGraphError
from lazyfx.v1 import compiler_pb2 as pb


def test_the_server_scripts_a_graph_without_tensors(server):
    before = metrics(server.metrics_url)
    with connected(server.address) as stub:
        key = stub.Compile(compile_request(graph_of(3.0), DCE)).module_key
        sent = artifact(stub, key, pb.ARTIFACT_KIND_TORCHSCRIPT)
        assert sent.header.rendered
        assert sent.trailer.recompiles.performed == 1
        assert not artifact(stub, key, pb.ARTIFACT_KIND_TORCHSCRIPT).header.rendered
    loaded = torch.jit.load(io.BytesIO(sent.data))
    x = torch.randn(4)
    torch.testing.assert_close(loaded(x), x * 3.0 + x * 3.0)
    after = metrics(server.metrics_url)
    name, labels = "lazyfx_recompiles_performed_total", {"trigger": "torchscript"}
    assert total(after, name, **labels) - total(before, name, **labels) == 1


def test_the_server_scripts_no_graph_whose_weights_are_elsewhere(server):
    with connected(server.address) as stub:
        linear = symbolic_trace(nn.Linear(2, 2))
        key = stub.Compile(compile_request(linear, DCE)).module_key
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_TORCHSCRIPT))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "save_torchscript" in refusal.message


@pytest.mark.parametrize("kind", ["symbolic", "exported", "dynamo", "aot"])
def test_every_capture_can_be_scripted(client: lazyfx.Client, tmp_path: Path, kind: str):
    model, example = models.resnet()
    for number, capture in enumerate(getattr(captures, kind)(model, example)):
        remote = client.compile(capture.module, ["common_subexpression_elimination", DCE])
        path = remote.save_torchscript(tmp_path / f"{number}.ts")
        inputs = [*capture.args, *capture.kwargs.values()]
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in inputs]
        with torch.no_grad():
            expected = capture.module(*capture.args, **capture.kwargs)
            found = torch.jit.load(path)(*copies)
        for one, other in zip(tree_leaves(expected), tree_leaves(found), strict=True):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)


class Returning(nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.linear = nn.Linear(2, 2) if how != "no parameters" else nn.Identity()

    def forward(self, x):
        y = self.linear(x) + 1
        return {
            "a tuple": lambda: (y, (x * 2, y)),
            "a list": lambda: [y, x],
            "a dict": lambda: {"b": y, "a": x * 3},
            "like a dict": lambda: BaseModelOutput(last_hidden_state=y, hidden_states=x),
        }.get(self.how, lambda: y)()


@pytest.mark.parametrize(
    "how", ["a tensor", "no parameters", "a tuple", "a list", "a dict", "like a dict"]
)
def test_it_returns_what_the_model_returns(client: lazyfx.Client, tmp_path: Path, how: str):
    model = Returning(how).eval()
    x = torch.randn(3, 2)
    remote = client.compile(torch.export.export(model, (x,)), [DCE])
    with torch.no_grad():
        found = torch.jit.load(remote.save_torchscript(tmp_path / "x.ts"))(x)
        expected = model(x)
    if how == "like a dict":
        expected = dict(expected)
    assert type(found) is type(expected)
    torch.testing.assert_close(found, expected)


def test_a_structure_without_a_type_is_refused_with_formats_that_keep_it(
    client: lazyfx.Client, tmp_path: Path
):
    class Numbered(nn.Module):
        def forward(self, x):
            return {1: x + 1, 2: x}

    remote = client.compile(torch.export.export(Numbered(), (torch.ones(2),)), [])
    with pytest.raises(UnsupportedGraphError, match=r"no type for what the model returns .*dict"):
        remote.save_torchscript(tmp_path / "x.ts")
    assert not (tmp_path / "x.ts").exists()


def test_what_torchscript_cannot_express_is_named(client: lazyfx.Client, tmp_path: Path):
    class Switching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(2))

        def forward(self, x):
            with torch.no_grad():
                y = x * self.scale
            return y + 1

    (capture,) = captures.dynamo(Switching(), {"x": torch.ones(2)})
    remote = client.compile(capture.module, [])
    with pytest.raises(UnsupportedGraphError, match="TorchScript cannot express"):
        remote.save_torchscript(tmp_path / "x.ts")
    assert not (tmp_path / "x.ts").exists()


def test_eager_makes_a_separate_module_at_once(client: lazyfx.Client):
    lazy = client.compile(graph_of(7.5), [DCE])
    eager = client.compile(graph_of(7.5), [DCE], eager=True)
    assert eager.key != lazy.key
    assert (lazy.report.eager, eager.report.eager) == (False, True)
    assert lazy.report.recompiles.performed == 0
    assert eager.report.recompiles.performed >= eager.report.recompiles.requested >= 1
    assert eager.report.passes[0].forced[0].startswith("eager at ")
    assert lazy.code == eager.code
    again = client.compile(graph_of(7.5), [DCE], eager=True)
    assert (again.cache.status, again.key) == ("hit", eager.key)


def test_modules_are_reported_one_by_one(client: lazyfx.Client):
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.child = symbolic_trace(lambda x: torch.relu(x) + torch.relu(x))

        def forward(self, x):
            return self.child(x) + 1

    class Tracer(torch.fx.Tracer):
        def is_leaf_module(self, m: nn.Module, name: str) -> bool:
            return True

    parent = Parent()
    module = torch.fx.GraphModule(parent, Tracer().trace(parent))
    remote = client.compile(module, ["common_subexpression_elimination", DCE])
    report = remote.report
    rows = {row.path: row for row in report.modules}
    assert set(rows) == {"", "a0"}
    assert all(row.stale for row in rows.values())
    assert (rows[""].recompiles.requested, rows["a0"].recompiles.requested) == (0, 1)
    assert sum(row.recompiles.requested for row in report.modules) == report.recompiles.requested
    assert (report.saved_basis, report.performed_seconds) == ("fitted", 0.0)
