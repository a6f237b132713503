"""`lazyfx warm` compiles before the fleet starts."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import nursery
import pytest
import torch
from training.counting import native_compiles
from training.loops import Net, batches, train

import lazyfx

SCRIPT = """
import sys, torch
from training.loops import Net, batches, train
assert sys.argv[1:] == ["--epochs", "9"]
model = Net(width=60)
torch.set_num_threads(1)
train(model, batches((6,) * 500), torch.compile(model, backend="lazyfx"))
raise SystemExit("the script was not ended")
"""


def run(folder: Path, text: str, server: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = folder / "script.py"
    script.write_text(text)
    return run_command(script, server, *arguments)


def run_command(what: Path, server: Any, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`lazyfx warm` as a process."""
    program = f"import sys; sys.path.append({str(Path(__file__).parents[1])!r})"
    program += "; from lazyfx.cli.__main__ import main; main()"
    command = ["-c", program, "warm", "--address", server.address, str(what), *arguments]
    return nursery.run("inductor", command)


def test_a_warmed_server_compiles_nothing_for_the_job(native_server: Any, tmp_path: Path) -> None:
    before = native_compiles(native_server)
    done = run(tmp_path, SCRIPT, native_server, "--epochs", "9")
    assert done.returncode == 0, done.stderr
    assert "1 graph, 1 remote" in done.stdout
    assert native_compiles(native_server) == before + 1
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        model = Net(width=60)
        options = {"address": native_server.address, "on_error": "raise"}
        train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    finally:
        torch.set_num_threads(threads)
    assert lazyfx.backend_report().graphs[0].cache == "hit"
    assert native_compiles(native_server) == before + 1


def train_once(options: dict[str, Any]) -> None:
    model = Net(width=61)
    train(model, batches(), torch.compile(model, backend="lazyfx", options=options))


def test_a_recording_warms_a_server_that_the_job_never_saw(
    native_server: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recording = tmp_path / "graphs"
    monkeypatch.setenv("LAZYFX_RECORD", str(recording))
    passes = ["dead_code_elimination", lazyfx.pass_spec("constant_fold", max_bytes=64)]
    absent = {"address": "127.0.0.1:1", "on_error": "eager", "passes": passes}
    with pytest.warns(lazyfx.FallbackWarning):
        train_once(absent)
    assert len(list(recording.iterdir())) == 1
    monkeypatch.delenv("LAZYFX_RECORD")

    before = native_compiles(native_server)
    done = run_command(recording, native_server)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("compiled") == 1
    assert native_compiles(native_server) == before + 1

    torch._dynamo.reset()
    lazyfx.backend.reset_backend_report()
    train_once({**absent, "address": native_server.address, "on_error": "raise"})
    assert lazyfx.backend_report().graphs[0].cache == "hit"
    assert native_compiles(native_server) == before + 1


def test_an_invalid_recording_is_named(native_server: Any, tmp_path: Path) -> None:
    broken = tmp_path / "broken.lazyfx"
    broken.write_bytes(b"not a recording")
    done = run_command(broken, native_server)
    assert done.returncode == 1
    assert "broken.lazyfx" in done.stderr


def test_a_script_that_compiles_nothing_is_reported(native_server: Any, tmp_path: Path) -> None:
    done = run(tmp_path, "print('hello')", native_server)
    assert done.returncode == 1
    assert "torch.compile" in done.stderr
