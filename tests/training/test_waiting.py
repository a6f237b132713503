"""Long compiles: not waited for, watched, left and found again."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nursery
import pytest
import torch
from harness import metrics, total, wait_until
from training.counting import native_compiles
from training.loops import Net, assert_same, batches, train

import lazyfx
from lazyfx.backend.dynamo_graphs import flatten
from lazyfx.shared import wire
from lazyfx.shared.native.native_request import native_request


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


def test_a_caller_that_leaves_does_not_end_the_compile_of_others_and_finds_it_later(
    native_server: Any,
) -> None:
    graph, request = captured(width=56)
    before = native_compiles(native_server)
    stages: list[str] = []
    seen = threading.Event()

    def note(progress: Any) -> None:
        stages.append(progress.stage)
        seen.set()

    def stay() -> bytes:
        with lazyfx.connect(native_server.address) as patient:
            return patient.compile(graph).native(request, timeout=250, on_progress=note)

    with ThreadPoolExecutor() as threads:
        staying = threads.submit(stay)
        assert seen.wait(250)
        with lazyfx.connect(native_server.address) as impatient:
            module = impatient.compile(graph)
            with pytest.raises(lazyfx.errors.TimedOutError):
                module.native(request, timeout=0.05)
            data = module.native(request, timeout=250)
        assert staying.result() == data
    assert len(data) > 10_000
    assert set(stages) <= {"waiting", "tracing", "compiling", "packing"}
    assert native_compiles(native_server) == before + 1


WAITING = """
from training.loops import Net, batches, train
import torch, lazyfx
model = Net(width=58)
train(model, batches(), torch.compile(model, backend="lazyfx", options={"on_error": "raise"}))
print(lazyfx.backend_report())
"""


def test_an_interrupted_job_leaves_the_flight_to_those_who_wait(
    native_server: Any, tmp_path: Path
) -> None:
    def start(name: str) -> Any:
        environment = {
            **os.environ,
            "LAZYFX_ADDRESS": native_server.address,
            "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / name),
            "PYTHONPATH": os.pathsep.join(
                [str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
            ),
        }
        return nursery.start("inductor", ["-c", WAITING], env=environment)

    before = native_compiles(native_server)
    one, other = start("one"), start("other")
    try:

        def under_way() -> bool:
            samples = metrics(native_server.metrics_url)
            return total(samples, "lazyfx_in_flight", stage="render") > 0

        wait_until(under_way, "a native compile is under way")
        one.send_signal(signal.SIGINT)
        _, errors = one.communicate(timeout=60)
        assert one.returncode != 0
        assert "KeyboardInterrupt" in errors
        printed, errors = other.communicate(timeout=250)
    finally:
        one.kill()
        other.kill()
    assert other.returncode == 0, errors
    assert "1 graph, 1 remote" in printed
    assert native_compiles(native_server) == before + 1


WATCHING = """
import logging, sys
from lazyfx.backend import progress_display
from lazyfx.v1 import compiler_pb2 as pb
progress_display._LOG_SECONDS = 0.0
logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(message)s")
with progress_display.show_progress(20) as notice:
    notice(pb.ArtifactProgress(stage="tracing", seconds=1))
    notice(pb.ArtifactProgress(stage="compiling", kernels=7, seconds=2))
"""


def test_progress_is_a_line_on_a_terminal_and_log_lines_elsewhere() -> None:
    command = ["-c", WATCHING]
    plain = nursery.run("torch", command, check=True)
    assert "INFO lazyfx: the server is compiling a graph of 20 nodes: tracing, 1 s" in plain.stderr
    assert "compiling, 7 kernels, 2 s" in plain.stderr
    quiet = nursery.run("torch", command, check=True, env={**os.environ, "RANK": "1"})
    assert quiet.stderr == ""

    ours, theirs = pty.openpty()
    terminal = subprocess.Popen(
        [*nursery.command("torch"), *command],
        stderr=theirs,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "120"},
    )
    os.close(theirs)
    shown = b""
    while chunk := _read(ours):
        shown += chunk
    os.close(ours)
    assert terminal.wait(100) == 0
    assert b"compiling, 7 kernels, 2 s" in shown
    assert b"\x1b[2K" in shown, "the line is redrawn"
    assert b"INFO" not in shown


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # what Linux says when the other end is closed
        return b""
