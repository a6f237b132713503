"""Token files, key files and ledgers that are corrupt, truncated, too large or not files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError, add_token
from lazyfx_server.security.secret_file import SecretFileError, read_private, secret_of
from lazyfx_server.security.signing import KeyRing


@pytest.fixture
def tokens(tmp_path: Path) -> tuple[Path, str, str]:
    path = tmp_path / "tokens"
    return path, add_token(path, "alice"), add_token(path, "bob")


def replaced(path: Path, content: bytes) -> None:
    """Put a file in another's place, as an orchestrator does."""
    temporary = path.with_name("new")
    temporary.write_bytes(content)
    temporary.replace(path)


@pytest.mark.parametrize("kept", range(0, 120, 7))
def test_half_a_token_file_changes_nothing(
    tokens: tuple[Path, str, str], kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    path, alice, bob = tokens
    file = TokenFile(path)
    whole = path.read_bytes()
    cut = whole[: len(whole) - 1 - kept]
    if cut.endswith(b"\n"):  # whole lines only: that is a file of fewer tokens
        return
    caplog.set_level(logging.ERROR)
    replaced(path, cut)
    assert file.tenant_of(alice) == "alice"
    assert file.tenant_of(bob) == "bob"
    assert "keeping the previous 2 tokens" in caplog.text
    replaced(path, whole)
    assert file.tenant_of(bob) == "bob"
    replaced(path, cut)
    with pytest.raises(TokenFileError):
        TokenFile(path)


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n"])
def test_an_empty_token_file_keeps_the_tokens_loudly(
    tokens: tuple[Path, str, str], content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    path, alice, _ = tokens
    file = TokenFile(path)
    caplog.set_level(logging.ERROR)
    replaced(path, content)
    assert file.tenant_of(alice) == "alice"
    assert "empty" in caplog.text
    assert len(caplog.records) == 1
    assert file.tenant_of(alice) == "alice"
    assert len(caplog.records) == 1
    replaced(path, b"# nobody\n")
    assert file.tenant_of(alice) is None


def test_a_token_file_is_a_plain_file(tmp_path: Path, tokens: tuple[Path, str, str]) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    for name in ("fifo", "device", "."):
        with pytest.raises(TokenFileError):
            TokenFile(tmp_path / name)
    # Orchestrators mount secrets as links.
    (tmp_path / "link").symlink_to(tokens[0])
    assert TokenFile(tmp_path / "link").tenant_of(tokens[1]) == "alice"


def test_a_secret_is_a_plain_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    with (tmp_path / "large").open("wb") as file:
        file.truncate(2**40)
    (tmp_path / "large").chmod(0o600)
    for name in ("fifo", "large"):
        with pytest.raises(SecretFileError):
            read_private(tmp_path / name)


def test_what_a_killed_server_left_does_not_hinder_its_successor(tmp_path: Path) -> None:
    # In a container each server is process 1, so the next one has the same number.
    (tmp_path / f".tenants.key.{os.getpid()}").touch()
    assert secret_of(tmp_path / "tenants.key") == secret_of(tmp_path / "tenants.key")


def test_a_key_file_that_is_gone_is_remembered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / ".keys" / "signing.pem"
    ring = KeyRing(path)
    keys = ring.keys
    data = path.read_bytes()
    path.unlink()
    path.parent.rmdir()
    assert ring.keys == keys
    assert ring.keys == keys
    assert len([r for r in caplog.records if "using the key in memory" in r.message]) == 1
    path.parent.mkdir()
    path.touch(0o600)
    path.write_bytes(data)
    assert len(ring.keys) == 1


LEDGERS: dict[str, bytes] = {
    "deep": b"[" * 100_000 + b"]" * 100_000,
    "no list": b"{}",
    "no row": b"[1]",
    "no key": b"[[[], 1]]",
    "deep key": b'[[[["a"]], 1]]',
    "long key": json.dumps([[["a"] * 100, 1]]).encode(),
    "long word": json.dumps([[["a" * 10_000], 1]]).encode(),
    "text": b'[[["a"], "1"]]',
    "not a number": b'[[["a"], NaN]]',
    "infinite": b'[[["a"], 1e999]]',
    "negative": b'[[["a"], -1]]',
    "not UTF-8": b"\xff\xfe\xfa",
}


@pytest.mark.parametrize("name", LEDGERS)
def test_a_broken_ledger_counts_from_the_start(tmp_path: Path, name: str) -> None:
    path = tmp_path / "counts.json"
    path.write_bytes(LEDGERS[name])
    ledger = LedgerFile(path)
    assert ledger.read() == {}
    assert ledger.write({("a", "b"): 2.5})
    assert ledger.read() == {("a", "b"): 2.5}
    ledger.close()


def too_large(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(2**40)


@pytest.mark.parametrize(
    "make", [os.mkfifo, too_large, lambda path: path.symlink_to("/dev/zero")],
    ids=["fifo", "too large", "device"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["counts.json", "counts.json.part", "counts.lock"])
def test_a_ledger_is_a_plain_file(tmp_path: Path, make: Callable[[Path], None], name: str) -> None:
    make(tmp_path / name)
    ledger = LedgerFile(tmp_path / "counts.json")
    assert ledger.read() == {}
    ledger.write({("a",): 1.0})
    ledger.close()


def test_a_ledger_follows_no_link_and_outlives_its_folder(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"x")
    path = tmp_path / ".ledger" / "counts.json"
    ledger = LedgerFile(path)
    (path.parent / "counts.json.part").symlink_to(precious)
    assert ledger.write({("a",): 1.0})
    assert precious.read_bytes() == b"x"
    for file in path.parent.iterdir():
        file.unlink()
    path.parent.rmdir()
    assert ledger.write({("a",): 2.0})
    assert ledger.read() == {("a",): 2.0}
    ledger.close()
