"""Native artifacts on a GPU, and what a server without one says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from training.counting import native_compiles
from training.loops import Net, Training, assert_same, batches, train

import lazyfx
from lazyfx.backend.dynamo_graphs import FlatGraph
from lazyfx.errors import PreconditionError
from lazyfx.shared import wire
from lazyfx.shared.native.native_request import native_request

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA device; this host has none"
)


@pytest.fixture(scope="module")
def native_server(launch_for_file: Any) -> Iterator[Any]:
    return launch_for_file("--native", "--workers", "1")


def cuda_graph() -> FlatGraph:
    """A graph of fake CUDA tensors as dynamo would hand it over; needs no GPU."""
    graph = torch.fx.symbolic_trace(lambda x: (torch.relu(x),))
    mode = torch._subclasses.fake_tensor.FakeTensorMode(allow_non_fake_inputs=True)
    meta = torch.empty(4, 8, device="meta")
    fake = torch._subclasses.FakeTensor(mode, meta, torch.device("cuda", 0))
    next(iter(graph.graph.nodes)).meta["val"] = fake
    return FlatGraph(graph, (), (fake,))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this host has a CUDA device")
def test_a_cpu_only_server_says_what_it_cannot_target(native_server: Any) -> None:
    flat = cuda_graph()
    assert wire.encode(flat.module).digest
    request = native_request(flat.devices, None, {})
    with lazyfx.connect(native_server.address) as client:
        module = client.compile(flat.module)
        with pytest.raises(PreconditionError, match="CPUs only"):
            module.native(request)


def on_gpu(index: int, backend: str, options: dict[str, object] | None) -> Training:
    torch._dynamo.reset()
    model = Net().cuda(index)
    inputs = [x.cuda(index) for x in batches()]
    return train(model, inputs, torch.compile(model, backend=backend, options=options))


@pytest.mark.gpu
@needs_cuda
def test_training_on_a_gpu_equals_local_inductor(native_server: Any) -> None:
    options = {"address": native_server.address, "on_error": "raise"}
    remote = on_gpu(0, "lazyfx", options)
    assert lazyfx.backend_report().graphs[-1].outcome == "remote"
    assert_same(remote, on_gpu(0, "inductor", None))


@pytest.mark.gpu
@needs_cuda
def test_the_second_job_on_a_gpu_compiles_nothing(native_server: Any) -> None:
    options = {"address": native_server.address, "on_error": "raise"}
    on_gpu(0, "lazyfx", options)
    before = native_compiles(native_server)
    on_gpu(0, "lazyfx", options)
    assert lazyfx.backend_report().graphs[-1].cache == "hit"
    assert native_compiles(native_server) == before


@pytest.mark.gpu
@needs_cuda
def test_the_server_tells_what_gpu_it_targets(native_server: Any) -> None:
    with lazyfx.connect(native_server.address) as client:
        accelerator = client.server_info().native.accelerator
    assert torch.cuda.get_device_name(0) in accelerator
    assert "sm_" in accelerator
