"""batch against a real server: records, resuming, failures."""

from __future__ import annotations

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import nursery
import pytest
import torch

from .conftest import save_program

PASSES = "dead_code_elimination,remove_dropout"


@pytest.fixture
def at(server):
    return ("--address", server.address, "--passes", PASSES)


@pytest.fixture
def models(tmp_path) -> Path:
    folder = tmp_path / "models"
    save_program(folder / "a.pt2", 0.5)
    save_program(folder / "deep" / "b.pt2", 0.75)
    (folder / "readme.txt").write_text("not a model")
    return folder


def test_every_file_is_done_once(run, at, models, tmp_path) -> None:
    out = tmp_path / "out"
    first = run("batch", models, "-o", out, "--jobs", 2, "--emit", "code", *at)
    assert first.exit_code == 0, first.output
    assert "2 files: 2 compiled, 0 already done, 0 failed" in first.stdout
    written = _files(out)
    assert written == ["a.pt2.json", "a.py", "deep/b.pt2.json", "deep/b.py"]
    record = json.loads((out / "deep" / "b.pt2.json").read_text())
    assert record["file"] == "deep/b.pt2"
    assert record["nodes_after"] < record["nodes_before"]
    assert record["recompiles_requested"] > 0
    assert record["cache"] == "miss"
    assert record["error"] == ""
    state = torch.export.load(models / "deep" / "b.pt2").state_dict
    emitted = runpy.run_path(str(out / "deep" / "b.py"))["Module"](state)
    inputs = torch.randn(2, 4)
    expected = torch.export.load(models / "deep" / "b.pt2").module()(inputs)
    torch.testing.assert_close(emitted(inputs), expected)

    second = run("batch", models, "-o", out, "--emit", "code", *at)
    assert second.exit_code == 0, second.output
    assert "2 files: 0 compiled, 2 already done, 0 failed" in second.stdout
    assert json.loads((out / "deep" / "b.pt2.json").read_text()) == record


def test_code_is_written_again_when_its_constants_are_missing(run, server, tmp_path) -> None:
    class Folding(torch.nn.Module):
        def forward(self, x):
            return x + torch.arange(4.0).sin()

    models, out = tmp_path / "models", tmp_path / "out"
    models.mkdir()
    torch.export.save(torch.export.export(Folding(), (torch.ones(4),)), models / "f.pt2")
    command = ("batch", models, "-o", out, "--emit", "code", "--address", server.address,
               "--passes", "constant_fold")  # fmt: skip
    assert "1 compiled, 0 already done" in run(*command).stdout
    assert "0 compiled, 1 already done" in run(*command).stdout
    (out / "f.constants.pt").unlink()
    assert "1 compiled, 0 already done" in run(*command).stdout
    assert _files(out) == ["f.constants.pt", "f.pt2.json", "f.py"]


def test_a_changed_file_is_done_again(run, at, models, tmp_path) -> None:
    out = tmp_path / "out"
    assert run("batch", models, "-o", out, *at).exit_code == 0
    save_program(models / "a.pt2", 0.375)
    assert "1 compiled, 1 already done" in run("batch", models, "-o", out, *at).stdout
    other_passes = [*at[:-1], "dead_code_elimination"]
    assert "2 compiled, 0 already done" in run("batch", models, "-o", out, *other_passes).stdout
    emitted = ["--emit", "picture", *other_passes]
    assert "2 compiled, 0 already done" in run("batch", models, "-o", out, *emitted).stdout
    (out / "a.svg").unlink()
    assert "1 compiled, 1 already done" in run("batch", models, "-o", out, *emitted).stdout


def test_a_changed_rewrite_is_done_again(run, server, models, tmp_path, factories) -> None:
    out = tmp_path / "out"
    command = ("batch", models, "-o", out, "--address", server.address,
               "--passes", "replace_pattern", "--rewrite")  # fmt: skip
    assert "2 compiled, 0 already done" in run(*command, f"{factories}:to_gelu").stdout
    assert "0 compiled, 2 already done" in run(*command, f"{factories}:to_gelu").stdout
    assert "2 compiled, 0 already done" in run(*command, f"{factories}:to_tanh").stdout


def test_one_bad_file_fails_alone_and_is_tried_again(run, at, models, tmp_path) -> None:
    out = tmp_path / "out"
    (models / "bad.pt2").write_bytes(b"no zip file")
    first = run("batch", models, "-o", out, *at)
    assert first.exit_code == 1
    assert "3 files: 2 compiled, 0 already done, 1 failed" in first.stdout
    assert "not an exported program" in json.loads((out / "bad.pt2.json").read_text())["error"]
    save_program(models / "bad.pt2", 0.875)
    second = run("batch", models, "-o", out, *at)
    assert second.exit_code == 0, second.output
    assert "3 files: 1 compiled, 2 already done, 0 failed" in second.stdout


def test_a_killed_run_leaves_no_partial_results(run, at, models, tmp_path) -> None:
    out = tmp_path / "out"
    assert run("batch", models, "-o", out, *at).exit_code == 0
    record = out / "a.pt2.json"
    record.write_text(record.read_text()[:20])
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True).stdout.strip()  # fmt: skip
    (out / f".a.py.{ended}.part").write_text("half a fi")
    mine = out / f".other.py.{os.getpid()}.part"
    mine.write_text("under way")
    again = run("batch", models, "-o", out, *at)
    assert "1 compiled, 1 already done" in again.stdout
    assert [path.name for path in out.glob(".*.part")] == [mine.name]


def test_an_interrupted_run_resumes(run, at, server, tmp_path) -> None:
    models, out = tmp_path / "models", tmp_path / "out"
    model = save_program(models / "000.pt2", 0.5).read_bytes()
    for i in range(1, 60):
        (models / f"{i:03}.pt2").write_bytes(model)
    command = ["-m", "lazyfx.cli", "batch", models, "-o", out, "--jobs", "1", "--emit", "code", *at]
    process = nursery.start("torch", command)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "run the same command again" in stderr
    done = len(list(out.glob("*.json")))
    assert 0 < done < 60
    assert _files(out) == sorted(
        name for path in out.glob("*.json") for name in (path.name, f"{path.name[:3]}.py")
    )
    again = run("batch", models, "-o", out, "--jobs", 2, "--emit", "code", *at)
    assert again.exit_code == 0, again.output
    assert f"60 files: {60 - done} compiled, {done} already done, 0 failed" in again.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent", "-o", "out"], "absent"),
        ([".", "-o", "out"], "there is no .pt2 or .lazyfx file in"),
        (["."], "--output"),
        ([".", "-o", "out", "--jobs", "0"], "--jobs"),
    ],
)
def test_wrong_usage_is_status_2(run, tmp_path, monkeypatch, arguments, expected) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("batch", *arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_nothing_is_attempted_without_a_server(run, models, tmp_path) -> None:
    result = run("batch", models, "-o", tmp_path / "out", "--address", "127.0.0.1:1")
    assert result.exit_code == 1
    assert "no server answers" in result.stderr
    assert not (tmp_path / "out").exists()


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
