"""ExportedPrograms: they load with torch alone, and are called as the captured module is."""

from __future__ import annotations

import io
from pathlib import Path

import models
import pytest
import torch
from harness import DCE, artifact, compile_request, connected, graph_of, metrics, refused, total
from torch import nn
from torch.export import Dim
from torch.fx import symbolic_trace
from torch.utils._pytree import tree_leaves
from wire import captures

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb


def with_shapes(module: torch.fx.GraphModule, *inputs: torch.Tensor) -> torch.fx.GraphModule:
    mode = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        for node, value in zip(module.graph.find_nodes(op="placeholder"), inputs, strict=True):
            node.meta["val"] = mode.from_tensor(value)
    return module


def test_the_server_exports_a_graph_without_tensors(server, client, tmp_path):
    x = torch.randn(4)
    graph = with_shapes(graph_of(3.5), x)
    before = metrics(server.metrics_url)
    with connected(server.address) as stub:
        key = stub.Compile(compile_request(graph, DCE)).module_key
        sent = artifact(stub, key, pb.ARTIFACT_KIND_EXPORTED_PROGRAM)
        assert sent.header.rendered
        assert not artifact(stub, key, pb.ARTIFACT_KIND_EXPORTED_PROGRAM).header.rendered
    loaded = torch.export.load(io.BytesIO(sent.data)).module()
    torch.testing.assert_close(loaded(x), x * 3.5 + x * 3.5)
    name, labels = "lazyfx_recompiles_performed_total", {"trigger": "exported_program"}
    after = metrics(server.metrics_url)
    assert total(after, name, **labels) - total(before, name, **labels) == 1

    remote = client.compile(graph, [DCE])
    saved = torch.export.load(remote.save_exported_program(tmp_path / "x.pt2"))
    torch.testing.assert_close(saved.module()(x), x * 3.5 + x * 3.5)
    signed = remote.provenance("exported_program")
    assert (signed.kind, signed.made_into) == ("graph", "exported_program")


def test_the_server_exports_no_graph_whose_weights_are_elsewhere(server):
    with connected(server.address) as stub:
        linear = with_shapes(symbolic_trace(nn.Linear(2, 2)), torch.randn(2, 2))
        key = stub.Compile(compile_request(linear, DCE)).module_key
        refusal = refused(lambda: artifact(stub, key, pb.ARTIFACT_KIND_EXPORTED_PROGRAM))
    assert refusal.code == "INVALID_ARGUMENT"
    assert "save_exported_program" in refusal.message


def test_a_graph_without_shapes_is_refused_with_the_remedy(client, tmp_path):
    with pytest.raises(lazyfx.LazyfxError, match="which records shapes"):
        client.compile(graph_of(9.5)).save_exported_program(tmp_path / "x.pt2")
    assert not (tmp_path / "x.pt2").exists()


@pytest.mark.parametrize("dynamic", [False, True], ids=["static", "dynamic"])
def test_a_real_model_keeps_its_way_of_being_called(client, tmp_path: Path, dynamic: bool):
    model, example = models.bert(layers=1)
    batch = Dim("batch", min=2, max=64)
    shapes = {name: {0: batch} for name in example} if dynamic else None
    program = torch.export.export(model, (), example, dynamic_shapes=shapes)
    remote = client.compile(program, ["common_subexpression_elimination", DCE])
    saved = torch.export.load(remote.save_exported_program(tmp_path / "bert.pt2"))
    assert set(saved.state_dict) <= set(program.state_dict) | set(program.constants)
    calls = [example]
    if dynamic:
        calls.append({name: value.repeat(3, 1) for name, value in example.items()})
    with torch.no_grad():
        for call in calls:
            expected, found = model(**call), saved.module()(**call)
            assert type(found) is type(expected)
            torch.testing.assert_close(tree_leaves(found), tree_leaves(expected))
    if not dynamic:
        return
    (bounds,) = saved.range_constraints.values()
    assert (bounds.lower, bounds.upper) == (2, 64)


@pytest.mark.parametrize("kind", ["exported", "dynamo", "aot"])
def test_every_capture_with_shapes_can_be_exported(client, tmp_path: Path, kind: str):
    model, example = models.bert(layers=1)
    for number, capture in enumerate(getattr(captures, kind)(model, example)):
        remote = client.compile(capture.module, [DCE])
        path = remote.save_exported_program(tmp_path / f"{number}.pt2")
        copies = [v.clone() if isinstance(v, torch.Tensor) else v for v in capture.args]
        kwargs = {k: v.clone() for k, v in capture.kwargs.items()}
        with torch.no_grad():
            expected = capture.module(*capture.args, **capture.kwargs)
            found = torch.export.load(path).module()(*copies, **kwargs)
        for one, other in zip(tree_leaves(expected), tree_leaves(found), strict=True):
            if isinstance(one, torch.Tensor):
                torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
