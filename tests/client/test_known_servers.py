"""The servers that a user trusts, and what `lazyfx trust` shows and refuses."""

from __future__ import annotations

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from server.harness import graph_of
from typer.testing import CliRunner, Result

import lazyfx
from lazyfx.cli.application import app
from lazyfx.errors import LazyfxError, UntrustedServerError
from lazyfx.shared.signing_keys import fingerprint
from lazyfx.trust.access import access
from lazyfx.trust.known_servers import known_keys, trust

if TYPE_CHECKING:
    from servers import RunningServer

ONE, TWO = "aa" * 32, "bb" * 32


@pytest.fixture(autouse=True)
def known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "configuration" / "known_servers"
    monkeypatch.setenv("LAZYFX_KNOWN_SERVERS", str(path))
    return path


@pytest.fixture(scope="module")
def elsewhere(server: RunningServer, named_host: str) -> str:
    """The server by a name that does not reveal that it is local, so that nothing authenticates it."""
    return f"{named_host}:{server.address.rpartition(':')[2]}"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["trust", *arguments])


def in_use(server: RunningServer) -> bytes:
    with lazyfx.connect(server.address) as client:
        return client.server_info().verify_keys[0].public_key


def test_what_was_written_is_read_by_address(known: Path) -> None:
    assert known_keys("a:1") == ()
    trust("a:1", [ONE, TWO])
    trust("b:1", [TWO])
    assert known_keys("a:1") == (ONE, TWO)
    assert known_keys("b:1") == (TWO,)
    assert known_keys("a:2") == ()
    trust("a:1", [TWO])
    assert known_keys("a:1") == (TWO,)
    trust("a:1", ())
    assert known_keys("a:1") == ()
    assert known_keys("b:1") == (TWO,)
    known.write_text(f"# a comment\n\nshort ed25519 {ONE.upper()}\n")
    assert known_keys("short:8700") == (ONE,)


def test_many_who_write_at_once_lose_nothing(known: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: trust(f"host{i}:1", [ONE]), range(40)))
    assert all(known_keys(f"host{i}:1") == (ONE,) for i in range(40))
    assert [path.name for path in known.parent.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("line", ["host", "host:1 rsa " + ONE, "host:1 ed25519 zz", "a b c d e f"])
def test_a_line_that_cannot_be_read_is_named_and_nothing_is_trusted(known: Path, line: str) -> None:
    known.parent.mkdir()
    known.write_text(f"good:1 ed25519 {ONE}\n{line}\n")
    with pytest.raises(LazyfxError, match="line 2 is not HOST:PORT ed25519 KEY"):
        access().pinned_keys("host:1")


def test_explicit_keys_override_known_ones() -> None:
    trust("a:1", [ONE])
    assert access(verify_keys=TWO).pinned_keys("a:1") == (TWO,)
    assert access().pinned_keys("a:1") == (ONE,)
    assert access().pinned_keys("b:1") is None


def test_a_server_that_proves_nothing_is_refused_until_it_is_trusted(
    server: RunningServer, elsewhere: str, tmp_path: Path, known: Path
) -> None:
    with lazyfx.connect(elsewhere) as client:
        module = client.compile(graph_of())
        with pytest.raises(UntrustedServerError, match=f"`lazyfx trust {elsewhere}`") as refused:
            module.code  # noqa: B018 - it is fetched
        assert "does not authenticate" in str(refused.value)
        # What the client builds itself from graph data holds no code of the server's.
        assert module.save_pickle(tmp_path / "own.pkl").exists()
    shown = run(elsewhere, "--yes")
    assert shown.exit_code == 0, shown.output
    assert fingerprint(in_use(server)) in shown.output
    assert str(known) in "".join(shown.output.split("\n"))
    assert known.parent.stat().st_mode & 0o077 == 0
    with lazyfx.connect(elsewhere) as client:
        assert "def forward" in client.compile(graph_of()).code
    assert run(elsewhere, "--forget").exit_code == 0
    with lazyfx.connect(elsewhere) as client, pytest.raises(UntrustedServerError):
        client.require_trusted()


def test_the_servers_log_has_the_fingerprint_and_the_line_to_pin_it(
    server: RunningServer, elsewhere: str, tmp_path: Path
) -> None:
    log = "".join(server.log)
    assert fingerprint(in_use(server)) in log
    pinned = re.search(r"LAZYFX_VERIFY_KEYS=([0-9a-f]{64})", log)
    assert pinned is not None
    with lazyfx.connect(elsewhere, verify_keys=pinned[1]) as client:
        assert "def forward" in client.compile(graph_of()).code


def test_a_changed_key_is_refused_loudly_everywhere(
    server: RunningServer, elsewhere: str, tmp_path: Path
) -> None:
    trust(elsewhere, [ONE])
    now = fingerprint(in_use(server))
    with lazyfx.connect(elsewhere) as client:
        module = client.compile(graph_of())
        with pytest.raises(UntrustedServerError, match="NOT THE ONE THAT YOU TRUST") as refused:
            module.save_pickle(tmp_path / "m.pkl")
    assert now in str(refused.value)
    assert "lazyfx trust --replace" in str(refused.value)
    again = run(elsewhere, "--yes")
    assert again.exit_code == 1
    assert "HAS CHANGED" in again.output
    assert known_keys(elsewhere) == (ONE,)
    assert run(elsewhere, "--replace", "--yes").exit_code == 0
    assert known_keys(elsewhere) == (in_use(server).hex(),)


def test_a_fingerprint_is_compared_and_without_one_the_user_must_confirm(
    server: RunningServer, elsewhere: str
) -> None:
    right = fingerprint(in_use(server))
    wrong = run(elsewhere, "--fingerprint", fingerprint(b"\0" * 32))
    assert (wrong.exit_code, known_keys(elsewhere)) == (1, ())
    assert right in wrong.output
    silent = run(elsewhere)
    assert silent.exit_code == 1
    assert "--fingerprint" in silent.output
    assert run(elsewhere, "--fingerprint", right).exit_code == 0
    assert known_keys(elsewhere) == (in_use(server).hex(),)


def test_the_command_refuses_an_invalid_address_and_an_unreachable_server() -> None:
    assert run("http://a:1").exit_code == 2
    away = run("127.0.0.1:1", "--yes", "--timeout", "5")
    assert away.exit_code == 1
    assert "no server answers" in away.output


def test_without_a_home_folder_nothing_is_trusted(tmp_path: Path) -> None:
    code = "from lazyfx.trust.known_servers import known_keys; print(known_keys('a:1'))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        env={"HOME": "/nonexistent", "PATH": ""},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert found.stdout.strip() == "()"
