"""Graphs of CUDA tensors: compiled on any host, run where there is a device."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import lazyfx

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this host has none"
)
PASSES = ["dead_code_elimination", "common_subexpression_elimination", "shape_propagation"]


def cuda_graph(index: int) -> torch.fx.GraphModule:
    """A graph of fake tensors on one GPU; needs no GPU."""

    def f(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        return torch.relu(x @ w) + torch.relu(x @ w)

    graph = torch.fx.symbolic_trace(f)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    device = torch.device("cuda", index)
    for node, shape in zip(graph.graph.nodes, [(4, 8), (8, 2)], strict=False):
        meta = torch.empty(shape, device="meta")
        node.meta["val"] = torch._subclasses.FakeTensor(mode, meta, device)
    return graph


def test_cuda_metadata_compiles_on_any_host(client: lazyfx.Client) -> None:
    module = client.compile(cuda_graph(0), passes=PASSES)
    assert module.report.nodes_after < module.report.nodes_before
    assert "torch.relu" in module.code


def test_the_index_of_the_only_gpu_does_not_matter(client: lazyfx.Client) -> None:
    first = client.compile(cuda_graph(1), passes=PASSES)
    second = client.compile(cuda_graph(3), passes=PASSES)
    assert first.digest == second.digest
    assert second.cache.status == "hit"


@pytest.mark.gpu
@needs_cuda
def test_a_compiled_graph_runs_on_the_device(client: lazyfx.Client) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 4))
    model = model.cuda().eval()
    x = torch.randn(8, 16, device="cuda")
    module = client.compile(torch.export.export(model, (x,)), passes=PASSES)
    with torch.no_grad():
        torch.testing.assert_close(module(x), model(x))


@pytest.mark.gpu
@needs_cuda
def test_the_server_tells_its_devices(client: lazyfx.Client) -> None:
    devices = {info.device: info for info in client.server_info().devices}
    assert devices["cuda:0"].memory_total_bytes > 0
