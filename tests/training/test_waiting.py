"""Long compiles: not waited for, watched, left and found again."""

from __future__ import annotations

import threading
from typing import Any

import torch
from harness import metrics, total, wait_until
from training.counting import native_compiles
from training.loops import Net, assert_same, batches, train

import lazyfx
from lazyfx import wire
from lazyfx.backend.graphs import flatten
from lazyfx.native.requests import native_request


def test_the_job_runs_until_the_artifact_is_there_then_swaps(native_server: Any) -> None:
    model = Net(width=48)
    options = {"address": native_server.address, "wait": False}
    compiled = torch.compile(model, backend="lazyfx", options=options)
    inputs = batches((6,) * 4)
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    first = train(model, inputs, compiled)
    assert not lazyfx.backend_report().graphs

    def swapped() -> bool:
        compiled(inputs[0])
        return lazyfx.backend_report().remote == 1

    model.eval()
    model.train()
    assert_same(first, train(Net(width=48), inputs))
    wait_until(swapped, "the artifact takes over")
    # Sizes that the artifact is not for run as before.
    reference = Net(width=48)
    reference.load_state_dict(model.state_dict())
    large = torch.randn(5000, 8)
    torch.testing.assert_close(compiled(large), reference(large))


def captured(width: int) -> tuple[torch.fx.GraphModule, Any]:
    found: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        flat = flatten(graph, inputs)
        found.append((flat.module, native_request(flat.devices, None, {})))
        return graph.forward

    torch.compile(Net(width=width), backend=backend)(batches()[0])
    graph, request = found[0]
    assert wire.encode(graph).digest
    return graph, request


def test_who_leaves_does_not_end_the_compile_and_who_comes_back_finds_it(
    native_server: Any,
) -> None:
    graph, request = captured(width=56)
    before = native_compiles(native_server)
    stages: list[str] = []
    with lazyfx.connect(native_server.address, timeout=1.5) as impatient:
        module = impatient.compile(graph, timeout=60)
        try:
            module.native(request, timeout=1.5)
        except lazyfx.errors.TimedOutError:
            left = True
    assert left

    def under_way() -> bool:
        samples = metrics(native_server.metrics_url)
        return total(samples, "lazyfx_in_flight", stage="render") > 0

    assert under_way()
    seen = threading.Event()
    with lazyfx.connect(native_server.address) as again:

        def note(progress: Any) -> None:
            stages.append(progress.stage)
            seen.set()

        data = again.compile(graph).native(request, timeout=200, on_progress=note)
    assert len(data) > 10_000
    assert seen.is_set()
    assert set(stages) <= {"waiting", "tracing", "compiling", "packing"}
    assert native_compiles(native_server) == before + 1
