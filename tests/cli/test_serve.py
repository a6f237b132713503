from __future__ import annotations

import re
import subprocess
import sys

from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app
from lazyfx_server.settings.model import FIELDS


def test_help_explains_every_setting_with_its_default(run) -> None:
    shown = run("serve", "--help")
    assert shown.exit_code == 0
    text = " ".join(shown.output.split())
    for name, setting in FIELDS.items():
        entry = text.split(f"--{name.replace('_', '-')} ", 2)[-1]
        assert setting.description, name
        assert " ".join(setting.description.split())[:40] in text, name
        assert re.search(r"\(default|Default:", entry), name
    assert "(default: 127.0.0.1:8700)" in text
    assert "(default: 1000)" in text


def test_a_wrong_setting_is_refused_without_a_traceback(run) -> None:
    for flags, expected in (
        (["--listen", "nowhere"], "HOST:PORT"),
        (["--listen", "0.0.0.0:0"], "--insecure"),
        (["--no-such-flag"], "--no-such-flag"),
    ):
        result = run("serve", *flags)
        assert result.exit_code != 0
        assert expected in result.output
        assert isinstance(result.exception, SystemExit)


def test_a_client_without_the_server_says_how_to_get_it(run, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lazyfx_server.__main__", None)
    result = run("serve")
    assert result.exit_code == 1
    assert "pip install 'lazyfx[server]'" in result.stderr


def test_help_lists_the_commands() -> None:
    shown = CliRunner().invoke(app, ["--help"], prog_name="lazyfx")
    assert shown.exit_code == 0
    for command in ("serve", "optimize", "batch", "passes", "stats", "demo"):
        assert re.search(rf"^  {command} ", shown.output, re.MULTILINE)
    assert CliRunner().invoke(app, ["--version"]).output == f"lazyfx {lazyfx.__version__}\n"
    assert CliRunner().invoke(app, ["no-such-command"]).exit_code == 2


def test_help_does_not_wait_for_torch() -> None:
    script = (
        "import sys; from lazyfx.cli.application import app; "
        "app(['optimize', '--help'], standalone_mode=False); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
