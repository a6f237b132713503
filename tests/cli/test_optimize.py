"""optimize, passes and stats against a real server."""

from __future__ import annotations

import ast
import json
import pickle

import nursery
import pytest
import torch

from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2

PASSES = "dead_code_elimination,remove_dropout,common_subexpression_elimination"


@pytest.fixture
def at(server):
    return ("--address", server.address)


def test_a_program_gives_a_report(run, at, program) -> None:
    result = run("optimize", program, "--passes", PASSES, *at)
    assert result.exit_code == 0, result.output
    for text in ("nodes", "recompiles", "requested", "saved", *PASSES.split(",")):
        assert text in result.stdout
    again = run("optimize", program, "--passes", PASSES, *at)
    assert "hit" in again.stdout


def test_options_of_passes_reach_the_server(run, at, program) -> None:
    passes = "dead_code_elimination,constant_fold{max_bytes=64}"
    result = run("optimize", program, "--passes", passes, *at)
    assert result.exit_code == 0, result.output
    assert "constant_fold{max_bytes=64}" in result.stdout


def test_nothing_but_code_is_on_standard_output(run, at, program) -> None:
    result = run("optimize", program, "--passes", PASSES, "--emit", "code", "-o", "-", *at)
    assert result.exit_code == 0, result.output
    compile(result.stdout, "emitted", "exec")
    assert "def forward(self" in result.stdout
    assert "sin" not in result.stdout
    assert "recompiles" in result.stderr


@pytest.mark.parametrize(
    "kind", ["code", "graph", "pickle", "package", "picture", "exported_program"]
)
def test_each_kind_is_written_and_can_be_used(run, at, program, tmp_path, kind) -> None:
    target = tmp_path / "new" / f"out.{kind}"
    result = run("optimize", program, "--passes", PASSES, "--emit", kind, "-o", target, *at)
    assert result.exit_code == 0, result.output
    assert [path.name for path in target.parent.iterdir()] == [target.name]
    inputs = torch.randn(2, 4)
    expected = torch.export.load(program).module()(inputs)
    data = target.read_bytes()
    if kind == "code":
        assert run_alone(target, program, inputs) == [expected.tolist()] * 2
    elif kind == "picture":
        assert b"<svg" in data
    elif kind == "exported_program":
        torch.testing.assert_close(torch.export.load(target).module()(inputs), expected)
    elif kind == "graph":
        graph = graph_pb2.Graph.FromString(data)
        names = [n.name for n in wire.decode(graph.body, graph.presentation).graph.nodes]
        assert "x" in names
    elif kind == "pickle":
        module = pickle.loads(data)
        torch.testing.assert_close(module(inputs), expected)
    else:
        module = torch.package.PackageImporter(target).load_pickle("module", "module.pkl")
        torch.testing.assert_close(module(inputs), expected)


ALONE = """
import runpy, sys, torch
sys.meta_path.insert(0, type("Hidden", (), {"find_spec": lambda self, name, *rest: 1 / (
    name.split(".")[0] not in ("lazyfx", "lazyfx_server")) and None})())
root, inputs = torch.load(sys.argv[2], weights_only=True)
module = runpy.run_path(sys.argv[1])["Module"](root)
with torch.no_grad():
    print([module(inputs).tolist() for _ in range(2)])
"""


def test_the_suffix_of_a_file_selects_the_kind_unless_emit_does(run, at, program, tmp_path) -> None:
    picture = tmp_path / "out.svg"
    assert "picture written to" in run("optimize", program, "-o", picture, *at).stdout
    assert b"<svg" in picture.read_bytes()
    assert (
        "code written to" in run("optimize", program, "-o", picture, "--emit", "code", *at).stdout
    )
    assert "class Module" in picture.read_text()
    exported = tmp_path / "out.exported.pt2"
    assert "exported_program written to" in run("optimize", program, "-o", exported, *at).stdout
    assert torch.export.load(exported).module()(torch.zeros(2, 4)).shape


def run_alone(file, program, inputs) -> list[object]:
    """Two calls of a file of code, bound to a program's state, where lazyfx is missing."""
    state = file.with_suffix(".state")
    torch.save((dict(torch.export.load(program).state_dict), inputs), state)
    command = ["-W", "ignore", "-c", ALONE, str(file), str(state)]
    out = nursery.run("torch", command, check=True)
    found = ast.literal_eval(out.stdout)
    assert isinstance(found, list)
    return found


def test_code_that_needs_constants_finds_them_next_to_it(run, at, tmp_path) -> None:
    class Folding(torch.nn.Module):
        def forward(self, x):
            return x + torch.arange(4.0).sin()

    inputs = torch.ones(4)
    program = torch.export.export(Folding(), (inputs,))
    torch.export.save(program, tmp_path / "folding.pt2")
    target = tmp_path / "out" / "model.py"
    result = run("optimize", tmp_path / "folding.pt2", "--passes", "constant_fold", "--emit",
                 "code", "-o", target, *at)  # fmt: skip
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in target.parent.iterdir())
    assert names == ["model.constants.pt", "model.py"]
    expected = Folding()(inputs).tolist()
    assert run_alone(target, tmp_path / "folding.pt2", inputs) == [expected] * 2


def test_factories(run, at, factories) -> None:
    result = run("optimize", f"{factories}:whole", "--passes", "dead_code_elimination", *at)
    assert result.exit_code == 0, result.output
    for example in ("float32[2,4]", "x=float32[3, 4]"):
        result = run("optimize", f"{factories}:module_only", "--example", example, *at)
        assert result.exit_code == 0, result.output


def test_rewrites_are_imported(run, at, factories) -> None:
    arguments = ("optimize", f"{factories}:whole", "--emit", "code", "-o", "-", *at)
    result = run(*arguments, "--passes", "replace_pattern", "--rewrite", f"{factories}:to_gelu")
    assert result.exit_code == 0, result.output
    assert "aten.gelu" in result.stdout
    assert "aten.relu" not in result.stdout
    _assert_one_line(run(*arguments, "--rewrite", f"{factories}:to_gelu"), "requires exactly one")
    for name, expected in (("absent", "AttributeError"), ("number", "TypeError")):
        result = run(*arguments, "--passes", "replace_pattern", "--rewrite", f"{factories}:{name}")
        _assert_one_line(result, expected)


@pytest.mark.parametrize(
    ("factory", "expected"),
    [
        ("raises", "RuntimeError: no weights here"),
        ("number", "returned a int; it must return (module, example_inputs)"),
        ("absent", "AttributeError"),
        ("module_only", "pass example_inputs to capture it"),
    ],
)
def test_a_bad_factory_fails_in_one_line(run, at, factories, factory, expected) -> None:
    result = run("optimize", f"{factories}:{factory}", *at)
    _assert_one_line(result, expected)


def test_an_unknown_pass_is_named_with_a_suggestion(run, at, program) -> None:
    _assert_one_line(
        run("optimize", program, "--passes", "dead_code_eliminatoin", *at), "dead_code_elimination"
    )
    _assert_one_line(
        run("optimize", program, "--passes", "constant_fold{max_byte=1}", *at), "max_bytes"
    )


def test_a_broken_file_fails_in_one_line(run, at, tmp_path) -> None:
    broken = tmp_path / "broken.pt2"
    broken.write_bytes(b"no zip file")
    _assert_one_line(run("optimize", broken, *at), "not an exported program")


def test_a_folder_in_the_way_fails_in_one_line(run, at, program, tmp_path) -> None:
    _assert_one_line(run("optimize", program, "--emit", "code", "-o", tmp_path, *at), str(tmp_path))
    assert not list(tmp_path.parent.glob(".*.part"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["absent.pt2"], "no such file"),
        (["neither"], "is not a .pt2, .lazyfx or .graph file or package.module:factory"),
        ([":factory"], "is not a .pt2, .lazyfx or .graph file"),
        (["m:f", "--passes", "a{"], "expected an option name before character 3"),
        (["m:f", "--emit", "code"], "--output FILE"),
        (["m:f", "-o", "-"], "select an artifact with --emit"),
        (["m:f", "-o", "x.pt2"], "the suffix of x.pt2 selects no artifact; use .py (code), .graph"),
        (["m:f", "--emit", "pickle", "-o", "-"], "only code and pictures can be printed"),
        (["m:f", "--emit", "novel", "-o", "x"], "novel"),
        (["m:f", "--example", "float99[2]"], "float32[2,8]"),
        (
            ["m:f", "--example", "int64[2]", "--example", "x=int64[2]"],
            "positionally, or all by keyword",
        ),
        (["m:f", "--address", "http://nowhere"], "is a URL"),
        ([], "MODEL"),
    ],
)
def test_wrong_usage_is_status_2(run, arguments, expected) -> None:
    result = run("optimize", *arguments)
    assert result.exit_code == 2
    assert expected in result.output


def test_no_server_names_the_remedy(run, monkeypatch) -> None:
    monkeypatch.setenv("LAZYFX_ADDRESS", "127.0.0.1:1")
    result = run("stats")
    _assert_one_line(
        result, "no server answers at 127.0.0.1:1 (Connection refused); start one with "
    )
    assert "LAZYFX_ADDRESS" in result.output


def test_passes_are_listed_with_options(run, at, client) -> None:
    listed = run("passes", *at)
    assert listed.exit_code == 0, listed.output
    data = json.loads(run("passes", "--json", *at).stdout)
    described = {description.name: description for description in client.passes()}
    assert {entry["name"] for entry in data} == set(described)
    for entry in data:
        assert entry["name"] in listed.stdout
        assert [o["name"] for o in entry["options"]] == [
            o.name for o in described[entry["name"]].options
        ]
        for option in entry["options"]:
            assert f"{option['name']}: {option['type']} = " in listed.stdout


def test_stats_follow_what_the_server_did(run, at, program) -> None:
    before = json.loads(run("stats", "--json", *at).stdout)
    for _ in range(2):
        assert run("optimize", program, "--passes", "dead_code_elimination", *at).exit_code == 0
    after = json.loads(run("stats", "--json", *at).stdout)
    assert after["misses"] + after["hits"] == before["misses"] + before["hits"] + 2
    assert after["hits"] > before["hits"]
    assert isinstance(after["store"]["bytes"], int)
    assert all(entry["reason"] for entry in after["miss_reasons"] if entry["count"])
    table = run("stats", *at).stdout
    for text in ("hits", "requested/performed/saved", "dead_code_elimination", "store size"):
        assert text in table


def test_help_says_that_files_run_code(run) -> None:
    for command in ("optimize", "batch"):
        assert "trust" in run(command, "--help").stdout


def _assert_one_line(result, expected: str) -> None:
    assert result.exit_code == 1, result.output
    assert expected in result.stderr
    assert result.stderr.startswith("lazyfx: ")
    assert len(result.stderr.strip().splitlines()) == 1
    assert "Traceback" not in result.output
