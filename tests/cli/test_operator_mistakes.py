"""Mistakes of operators are reported in one line that names the flag or the file, without traceback."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import nursery
import pytest
from click.testing import Result

from lazyfx_server.operator_checks import _is_module
from lazyfx_server.settings.model import FIELDS, group_of

_HERE = ("--listen", "127.0.0.1:0", "--metrics-port", "0")


def _error_message(result: Result, status: int) -> str:
    assert result.exit_code == status, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    return " ".join(result.output.split())


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"listen = \n", "is not valid TOML: Invalid value (at line 1, column 10)"),
        (b"\xff\xfe\x00junk", "is not a text file in UTF-8"),
        (b'lisen = "127.0.0.1:0"\n', "unknown setting 'lisen'; did you mean 'listen'?"),
        (b"[oops]\na = 1\n", "unknown setting 'oops'"),
        (b'workers = "many"\n', ": workers: must be an integer, not 'many'"),
        (b"workers = 0\n", ": workers: must be at least 1, not 0"),
        (b"a = " + b"[" * 5000, "is not valid TOML"),
        (b"max_nodes = " + b"9" * 5000, "a number has too many digits"),
        (b'store_path = "\\u0000"\n', "store_path: contains a NUL character"),
    ],
)
def test_a_wrong_settings_file_is_named(run, tmp_path, monkeypatch, content, expected) -> None:
    monkeypatch.delenv("LAZYFX_WORKERS", raising=False)
    file = tmp_path / "settings.toml"
    file.write_bytes(content)
    message = _error_message(run("serve", "--config", str(file), *_HERE), 2)
    assert str(file) in message
    assert expected in message


def test_a_settings_file_that_is_missing_or_a_folder(run, tmp_path) -> None:
    assert "no such file" in _error_message(run("serve", "--config", str(tmp_path / "none")), 2)
    assert "is not a file" in _error_message(run("serve", "--config", str(tmp_path)), 2)


def test_the_source_of_a_wrong_value_is_named(run, monkeypatch) -> None:
    assert "--workers: must be an integer" in _error_message(run("serve", "--workers", "many"), 2)
    monkeypatch.setenv("LAZYFX_WORKERS", "many")
    assert "LAZYFX_WORKERS: must be an integer" in _error_message(run("serve"), 2)


def test_a_store_that_cannot_be_used(run, tmp_path) -> None:
    file = tmp_path / "file"
    file.touch()
    for path, expected in ((file, "is not a folder"), (file / "below", "Not a directory")):
        message = _error_message(run("serve", "--store-path", str(path), *_HERE), 2)
        assert f"--store-path {path}: " in message
        assert expected in message


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_without_permission(run, tmp_path) -> None:
    tmp_path.chmod(0o500)
    message = _error_message(run("serve", "--store-path", str(tmp_path / "store"), *_HERE), 2)
    assert "Permission denied" in message


def test_ports_that_are_taken(run) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        store = ("--store-path", "")
        message = _error_message(
            run("serve", "--listen", f"127.0.0.1:{port}", "--metrics-port", "0", *store), 2
        )
        assert f"--listen 127.0.0.1:{port}: " in message
        assert "in use" in message
        message = _error_message(
            run("serve", "--listen", "127.0.0.1:0", "--metrics-port", str(port), *store), 2
        )
        assert f"--metrics-port {port}: " in message


@pytest.mark.parametrize("flag", ["--tokens", "--allow-targets"])
def test_a_file_that_is_missing_is_named(run, tmp_path, flag) -> None:
    missing = str(tmp_path / "missing")
    message = _error_message(run("serve", flag, missing, "--store-path", "", *_HERE), 2)
    assert f"{flag} {missing}: No such file" in message
    message = _error_message(run("serve", flag, str(tmp_path), "--store-path", "", *_HERE), 2)
    assert "is not a file" in message


def test_an_invalid_certificate(run, tmp_path) -> None:
    junk = tmp_path / "junk.pem"
    junk.write_bytes(b"\x00\x01")
    files = ("--server-certificate", str(junk), "--server-key", str(junk))
    message = _error_message(run("serve", *files, "--store-path", "", *_HERE), 2)
    assert f"--server-certificate {junk} --server-key {junk}: " in message


def _junk(folder: Path) -> Path:
    file = folder / "junk.pt2"
    file.write_bytes(bytes(range(256)) * 4)
    return file


@pytest.mark.parametrize("command", ["optimize", "explain"])
def test_invalid_graph_files(run, tmp_path, command) -> None:
    for path in (tmp_path / "missing.pt2", tmp_path / "folder.pt2", _junk(tmp_path)):
        if path.name == "folder.pt2":
            path.mkdir()
        paths = [path] if command == "optimize" else [path, path]
        result = run(command, *paths)
        assert result.exit_code in (1, 2), result.output
        # Without a server, the connection may be what fails first.
        assert path.name in result.output or "no server answers" in result.output
        assert result.exception is None or isinstance(result.exception, SystemExit)


def test_batch_without_its_folder(run, tmp_path) -> None:
    for path in (tmp_path / "missing", _junk(tmp_path)):
        result = run("batch", str(path), "--out", str(tmp_path / "out"))
        assert result.exit_code == 2, result.output
        assert isinstance(result.exception, SystemExit)


def test_each_setting_is_shown_in_one_group(run) -> None:
    shown = run("serve", "--help").output
    for title in {group_of(name) for name in FIELDS}:
        assert f"\n{title}:\n" in shown


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("lazyfx opt", "optimize"),
        ("lazyfx optimize --pass", "--passes"),
        ("lazyfx serve --lis", "--listen"),
    ],
)
def test_the_shell_completes(words, expected) -> None:
    asked = {
        "_LAZYFX_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
    }
    command = [sys.executable, "-m", "lazyfx.cli"]
    shown = subprocess.run(
        command, env={**os.environ, **asked}, check=False, capture_output=True, text=True
    )
    assert shown.stdout.split() == [expected]


def test_completion_can_be_shown() -> None:
    command = [sys.executable, "-m", "lazyfx.cli", "--show-completion", "bash"]
    environment = {**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    shown = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert "_lazyfx_completion" in shown.stdout


FILES_OF_SECRETS = {
    "invalid tokens": ("--tokens", "banana\n", "line 1: expected 'id sha256 tenant'"),
    "no tokens": (
        "--tokens",
        "",
        "is empty, so no caller would be accepted; `lazyfx token TENANT --file",
    ),
    "a key that is none": ("--signing-key", "banana\n", "contains no private key"),
    "a secret that is none": ("--tenant-secret", "banana\n", "does not hold 32 bytes"),
}


@pytest.mark.parametrize("case", FILES_OF_SECRETS)
def test_a_file_of_secrets_that_cannot_be_used(case, run, tmp_path) -> None:
    flag, text, expected = FILES_OF_SECRETS[case]
    path = tmp_path / "file"
    path.write_text(text)
    path.chmod(0o600)
    message = _error_message(run("serve", flag, str(path), *_HERE), 2)
    assert message.startswith(f"lazyfx serve: {flag}")
    assert message.count(str(path)) == (2 if "--file" in message else 1)
    assert expected in message


def test_modules_and_plugins_that_do_not_exist(run) -> None:
    for name in ("no_such_module", "lazyfx.no_such_module", "torch.nn.functional.nothing"):
        message = _error_message(run("serve", "--operator-modules", name, *_HERE), 2)
        assert f"--operator-modules {name}: there is no such module" in message
    message = _error_message(run("serve", "--pass-plugins", "nothing", *_HERE), 2)
    assert "--pass-plugins nothing: no installed package provides passes of this name" in message
    assert _is_module("torch.nn.functional")
    assert _is_module("json.decoder")


def test_additional_targets_that_cannot_be_read(tmp_path) -> None:
    path = tmp_path / "targets.json"
    path.write_text("{")
    # In another process, because by then the server has configured its log and its allocator.
    command = ["-m", "lazyfx_server", "--allow-targets", str(path), *_HERE]
    ran = nursery.run("server", command, timeout=120)
    assert ran.returncode == 2
    assert f"lazyfx serve: --allow-targets {path}: is not JSON" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_native_artifacts_without_a_compiler(run, monkeypatch, tmp_path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    message = _error_message(run("serve", "--native", *_HERE), 2)
    assert message == (
        "lazyfx serve: --native: there is no C++ compiler 'g++' here; install g++, or set CXX to "
        "one"
    )
