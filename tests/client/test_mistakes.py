"""Common mistakes in arguments are refused with a message that says what to pass instead."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import lazyfx
from lazyfx.capture.saved_graphs import load_graph
from lazyfx.cli.model_sources import load_program
from lazyfx.errors import AddressError, DecodeError, InvalidRequestError, LazyfxError

if TYPE_CHECKING:
    from servers import RunningServer


class Branching(torch.nn.Module):
    """Its control flow depends on tensor values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x + 1
        return x - 1


MODEL = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU()).eval()

GIVEN: dict[str, tuple[Callable[[], Any], str]] = {
    "nothing": (lambda: None, "cannot compile an object of type NoneType"),
    "a path": (lambda: "model.pt2", "a path: pass a GraphModule.*torch.export.load"),
    "a function": (lambda: torch.relu, "torch.fx.symbolic_trace turns a function into"),
    "a graph": (lambda: torch.fx.symbolic_trace(MODEL).graph, "combines a Graph with its tensors"),
    "a module": (
        lambda: MODEL,
        "a Sequential is not a graph: pass example_inputs to capture it",
    ),
    "a script": (lambda: torch.jit.script(MODEL), "TorchScript module has no torch.fx graph"),
}


@pytest.mark.parametrize("case", GIVEN)
@pytest.mark.filterwarnings("ignore")
def test_what_is_not_a_graph(case: str, client: lazyfx.Client) -> None:
    make, sentence = GIVEN[case]
    with pytest.raises(LazyfxError, match=sentence):
        client.compile(make())


@pytest.mark.parametrize("timeout", [0, -1, float("nan")])
def test_what_is_not_a_timeout(timeout: float, client: lazyfx.Client) -> None:
    graph = torch.fx.symbolic_trace(MODEL)
    with pytest.raises(LazyfxError, match="timeout must be a number of seconds greater than 0"):
        client.compile(graph, [], timeout=timeout)


def test_a_timeout_without_end(client: lazyfx.Client) -> None:
    graph = torch.fx.symbolic_trace(MODEL)
    assert client.compile(graph, [], timeout=float("inf")).code


@pytest.mark.parametrize("job", [MODEL, (MODEL,), "model", (MODEL, [], (), 0)])
def test_what_is_not_a_job(job: Any, client: lazyfx.Client) -> None:
    with pytest.raises(LazyfxError, match=r"jobs\[1\] is a .*\[\(graph, passes\), ...\]"):
        list(client.compile_many([(torch.fx.symbolic_trace(MODEL), []), job]))


def test_code_that_depends_on_values(client: lazyfx.Client) -> None:
    with pytest.raises(LazyfxError) as failed:
        client.compile(Branching(), example_inputs=(torch.ones(2),))
    message = str(failed.value)
    assert "\n" not in message
    assert f"at {__file__}, line " in message
    assert "torch.cond" in message
    assert 'backend="lazyfx"' in message


@pytest.mark.parametrize("passes", [3, 2.5, object()])
def test_invalid_passes(passes: Any, client: lazyfx.Client) -> None:
    with pytest.raises(LazyfxError, match="passes must be a list of names and"):
        client.compile(torch.fx.symbolic_trace(MODEL), passes)


@pytest.mark.parametrize("rewrite", [torch.relu, (torch.relu,), [torch.relu]])
def test_a_rewrite_that_is_not_a_pair(rewrite: Any) -> None:
    with pytest.raises(LazyfxError, match=r"takes pairs \(pattern, replacement\)"):
        lazyfx.replace_pattern(rewrite)


@pytest.mark.parametrize("address", [8700, b"localhost", 1.5])
def test_an_address_that_is_not_text(address: Any) -> None:
    with pytest.raises(AddressError, match="is not a server address; use HOST"):
        lazyfx.connect(address)


def test_addresses_that_are_not_one_text() -> None:
    given: Any = ("localhost", 8700)
    with pytest.raises(AddressError, match="write several addresses as one text: HOST:PORT,HOST"):
        lazyfx.connect(given)


@pytest.mark.parametrize("timeout", [0, -1, "3", float("nan"), None])
def test_an_invalid_timeout(timeout: Any) -> None:
    with pytest.raises(
        LazyfxError, match="timeout must be a number of seconds greater than 0, not"
    ):
        lazyfx.connect(timeout=timeout)


@pytest.mark.parametrize("what", [MODEL, None, "model.pt2"])
def test_a_digest_of_what_is_not_a_graph(what: Any) -> None:
    with pytest.raises(LazyfxError, match="digest takes a GraphModule, not an object of type"):
        lazyfx.digest(what)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("x.lazyfx", b"", "x.lazyfx is empty"),
        ("x.lazyfx", b"print('hello')\n", "x.lazyfx is not a lazyfx graph file"),
        ("x.pt2", b"PK\x03\x04", r"x.pt2 is not a lazyfx graph file; torch.export.load reads it"),
    ],
)
def test_an_invalid_graph_file(name: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DecodeError, match=sentence):
        load_graph(tmp_path / name)


def test_an_invalid_model_file_is_reported_without_a_traceback(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.pt2"
    path.write_text("hello")
    level = logging.getLogger("torch.export").level
    with pytest.raises(LazyfxError, match="is not an exported program that torch"):
        load_program(path)
    assert "Traceback" not in "".join(capfd.readouterr())
    assert logging.getLogger("torch.export").level == level


def test_a_package_that_could_not_be_written_is_not_compiled(
    client: lazyfx.Client, tmp_path: Path
) -> None:
    module = client.compile(torch.export.export(MODEL, (torch.ones(2, 4),)))
    with pytest.raises(FileNotFoundError, match="No such folder"):
        module.save_aot_inductor(tmp_path / "none" / "model.pt2")
    with pytest.raises(IsADirectoryError):
        module.save_aot_inductor(tmp_path)


def test_a_public_name_misspelled() -> None:
    with pytest.raises(AttributeError, match="'conect'; did you mean 'connect'"):
        lazyfx.conect  # noqa: B018 - the access is the test


def test_one_wording_for_unknown_passes_in_python_and_in_commands(
    server: RunningServer, tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from lazyfx.cli.application import app

    program = torch.export.export(MODEL, (torch.ones(2, 4),))
    torch.export.save(program, tmp_path / "model.pt2")
    for passes, sentence in (
        ("dce", "no pass or pipeline is named 'dce'; did you mean 'dead_code_elimination'?"),
        ("constant_fold{max_byte=1}", "has no option 'max_byte'; did you mean 'max_bytes'?"),
    ):
        with (
            lazyfx.connect(server.address) as client,
            pytest.raises(InvalidRequestError) as failed,
        ):
            client.compile(program, passes)
        assert sentence in str(failed.value)
        command = ["optimize", str(tmp_path / "model.pt2"), "--passes", passes]
        ran = CliRunner().invoke(app, [*command, "--address", server.address])
        assert ran.exit_code == 1
        assert sentence in ran.output
