"""Usage errors are reported in terms of the command line."""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

import pytest
from typer.testing import CliRunner

from lazyfx.cli.application import app
from lazyfx.cli.usage import in_plain_words

WRONG = {
    "a kind": (["optimize", "m.pt2", "--emit", "cod", "-o", "x"], "did you mean 'code'?"),
    "too small": (["optimize", "m.pt2", "--timeout", "0"], "0.001"),
    "not a number": (["optimize", "m.pt2", "--timeout", "soon"], "number"),
    "no jobs": (["batch", ".", "-o", "out", "--jobs", "0"], "1"),
    "half a job": (["batch", ".", "-o", "out", "--jobs", "1.5"], "number|integer"),
    "no steps": (["warm", "--steps", "0", "train.py"], "1"),
    "no lines": (["explain", "a", "b", "--limit", "x"], "number|integer"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_value(case: str) -> None:
    import re

    arguments, words = WRONG[case]
    ran = CliRunner().invoke(app, arguments)
    assert ran.exit_code == 2
    message = " ".join(ran.output.split())
    assert re.search(words, message)
    assert "Input should" not in message
    assert "Value error" not in message


def test_the_words_of_the_validator() -> None:
    assert in_plain_words("Input should be greater than or equal to 1") == "must be at least 1"
    assert (
        in_plain_words("Input should be a valid number, unable to parse string as a number")
        == "must be a number"
    )
    assert in_plain_words("Value error, 'x' is odd") == "'x' is odd"
    assert in_plain_words("'zzz' is not one of 'code', 'graph'.") == (
        "'zzz' is not one of 'code', 'graph'."
    )


class Interrupting(MetaPathFinder):
    """Ctrl-C while a module is imported."""

    def find_spec(self, name: str, *_: Any) -> None:
        if name == "lazyfx.cli.application":
            raise KeyboardInterrupt


def test_ctrl_c_while_a_command_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    from lazyfx.cli.__main__ import main

    monkeypatch.setattr(sys, "meta_path", [Interrupting(), *sys.meta_path])
    monkeypatch.delitem(sys.modules, "lazyfx.cli.application")
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 130
    assert ended.value.__suppress_context__


def test_ctrl_c_while_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    import lazyfx_server.__main__ as server

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(server, "check_setup", interrupted)
    with pytest.raises(SystemExit) as ended:
        server.main([])
    assert ended.value.code == 130
