"""Unusable tokens, certificates and keys are refused by name, before gRPC sees them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nursery
import pytest
from hostile.certificates import Authority

import lazyfx
from lazyfx.errors import LazyfxError

HERE = "127.0.0.1:1"
TOKEN = "lazyfx_0123456789abcdef_" + "x" * 43


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("LAZYFX_")]:
        monkeypatch.delenv(name)


def refusal(**options: Any) -> str:
    with pytest.raises(LazyfxError) as failed:
        lazyfx.connect(HERE, **options)
    message = str(failed.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("token", ["t\u00f6k\u00e9n", "two words", "a\nb", "a\0b", "\x7f"])
def test_a_token_that_cannot_be_sent(token: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = refusal(token=token)
    assert message.startswith("token contains characters that are not allowed")
    assert token not in message
    if "\0" not in token:
        monkeypatch.setenv("LAZYFX_TOKEN", token)
        assert refusal().startswith("LAZYFX_TOKEN contains characters")


def test_an_invalid_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "token is empty" in refusal(token=" \n")
    assert "token must be a string, not an object of type int" in refusal(token=3)
    path = tmp_path / "token"
    monkeypatch.setenv("LAZYFX_TOKEN_FILE", str(path))
    assert f"LAZYFX_TOKEN_FILE: cannot read {path}" in refusal()
    path.touch()
    assert f"LAZYFX_TOKEN_FILE: {path} is empty" in refusal()
    path.write_bytes(b"\x80\x04junk")
    assert f"LAZYFX_TOKEN_FILE: {path} contains characters" in refusal()


def test_a_token_with_a_line_feed_is_that_token(tmp_path: Path) -> None:
    from lazyfx.trust.access import access

    assert access(token=f" {TOKEN}\n").token == TOKEN


@pytest.mark.parametrize("keys", ["abc", ["00"], "0" * 63, [3]])
def test_invalid_keys(keys: Any) -> None:
    assert "verify_keys (LAZYFX_VERIFY_KEYS) must be public keys of 64 hex" in refusal(
        verify_keys=keys
    )


def test_files_of_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("client")
    _, other = authority.issue("other")
    junk = tmp_path / "junk"
    junk.write_text("junk")
    assert "tls must be True or lazyfx.Tls(ca=...)" in refusal(tls=str(authority.file))
    assert f"cannot read {tmp_path}: Is a directory" in refusal(tls=lazyfx.Tls(ca=tmp_path))
    assert f"{junk} contains no certificates" in refusal(tls=lazyfx.Tls(ca=junk))
    for half in (lazyfx.Tls(certificate=certificate), lazyfx.Tls(key=key)):
        assert "a certificate requires its key" in refusal(tls=half)
    for pair in ((certificate, other), (junk, key), (certificate, junk), (key, certificate)):
        message = refusal(tls=lazyfx.Tls(certificate=pair[0], key=pair[1]))
        assert "are not a certificate in PEM format and its private key" in message
    monkeypatch.setenv("LAZYFX_CLIENT_KEY", str(key))
    assert "LAZYFX_CLIENT_CERTIFICATE, LAZYFX_CLIENT_KEY" in refusal()
    monkeypatch.delenv("LAZYFX_CLIENT_KEY")
    lazyfx.connect(
        HERE, tls=lazyfx.Tls(ca=authority.file, certificate=certificate, key=key)
    ).close()


def test_a_certificate_without_its_key_does_not_end_the_process(tmp_path: Path) -> None:
    certificate, _ = Authority(tmp_path).issue("client")
    program = "import lazyfx; lazyfx.connect('127.0.0.1:1', tls=True).server_info()"
    ran = nursery.run(
        "torch",
        ["-c", program.replace("tls=True", "tls=None")],
        env={**os.environ, "LAZYFX_CLIENT_CERTIFICATE": str(certificate)},
    )
    assert ran.returncode == 1
    assert "a certificate requires its key" in ran.stderr
