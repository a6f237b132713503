"""Every command that takes a model accepts files that lazyfx writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.v1 import compiler_pb2 as pb


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(3, 3)

    def forward(self, x):
        torch.sin(x)
        return torch.relu(self.linear(x))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "graphs" / "net.lazyfx"
    path.parent.mkdir()
    lazyfx.save_graph(symbolic_trace(Net()), path)
    return path


@pytest.fixture
def recorded(saved: Path) -> Path:
    """What a job writes with LAZYFX_RECORD: the graph, and what it is compiled with."""
    path = saved.with_name("recorded.lazyfx")
    graph = lazyfx.load_graph(saved)
    found = pb.RecordedCompile(passes=[pb.PassSpec(name="dead_code_elimination")])
    found.graph.ParseFromString(saved.read_bytes())
    path.write_bytes(found.SerializeToString())
    assert lazyfx.load_graph(path).digest == graph.digest
    return path


@pytest.mark.parametrize("which", ["saved", "recorded"])
def test_optimize_takes_them(run, server, request, which: str) -> None:
    path = request.getfixturevalue(which)
    passes = ("--passes", "dead_code_elimination", "--address", server.address)
    result = run("optimize", path, *passes, "--emit", "code", "-o", "-")
    assert result.exit_code == 0, result.output
    assert "relu" in result.stdout
    assert "sin" not in result.stdout
    refused = run("optimize", path, *passes, "--emit", "pickle", "-o", path.with_suffix(".pkl"))
    assert refused.exit_code == 2
    assert "without parameter values" in " ".join(refused.output.split())
    assert not path.with_suffix(".pkl").exists()


def test_optimize_takes_the_graph_that_it_has_written(run, server, saved: Path) -> None:
    written = saved.with_suffix(".graph")
    first = run("optimize", saved, "--address", server.address, "-o", written)
    assert first.exit_code == 0, first.output
    again = run("optimize", written, "--address", server.address, "--emit", "code", "-o", "-")
    assert again.exit_code == 0, again.output
    assert "sin" in again.stdout


def test_batch_takes_them_next_to_programs_of_the_same_name(
    run, server, saved: Path, program: Path, tmp_path: Path
) -> None:
    (saved.parent / "net.pt2").write_bytes(program.read_bytes())
    out = tmp_path / "out"
    result = run(
        "batch", saved.parent, "-o", out, "--passes", "dead_code_elimination",
        "--emit", "code", "--address", server.address,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "2 files: 2 compiled" in result.output
    assert "linear" in (out / "net.lazyfx.py").read_text()
    assert (out / "net.py").read_text() != (out / "net.lazyfx.py").read_text()
    refused = run("batch", saved.parent, "-o", out, "--emit", "pickle", "--address", server.address)
    assert refused.exit_code == 1
    assert "without parameter values" in json.loads((out / "net.lazyfx.json").read_text())["error"]


def test_explain_takes_them(run, saved: Path, recorded: Path) -> None:
    result = run("explain", saved, recorded)
    assert result.exit_code == 0, result.output


def test_a_loaded_graph_shows_what_it_is_and_compiles(server, saved: Path) -> None:
    graph = lazyfx.load_graph(saved)
    shown = repr(graph)
    assert shown.startswith(f"<SavedGraph {graph.digest[:12]}: 5 nodes")
    assert len(shown) < 200
    with lazyfx.connect(server.address) as client:
        module = client.compile(graph, "dead_code_elimination")
        assert (module.report.nodes_before, module.report.nodes_after) == (5, 4)
        again = client.compile(module, "dead_code_elimination")
        assert again.report.nodes_after == 4


def test_a_misspelled_pass_fails_once_before_any_file_is_opened(run, server, tmp_path) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    for number in range(3):
        (folder / f"{number}.pt2").write_bytes(b"this is not opened")
    result = run(
        "batch", folder, "-o", tmp_path / "out", "--passes", "dce", "--address", server.address
    )
    assert result.exit_code == 1
    assert result.output.count("did you mean 'dead_code_elimination'?") == 1
    assert not (tmp_path / "out").exists()
    wrong = run("optimize", folder / "0.pt2", "--passes", "infrence", "--address", server.address)
    assert wrong.exit_code == 1
    assert "did you mean 'inference'?" in wrong.output
    option = run("optimize", folder / "0.pt2", "--passes", "fold", "--address", server.address)
    assert "did you mean 'constant_fold'?" in option.output
    option = run(
        "optimize", folder / "0.pt2", "--passes", "constant_fold{max_byte=1}",
        "--address", server.address,
    )  # fmt: skip
    assert "constant_fold has no option 'max_byte'; did you mean 'max_bytes'?" in option.output
