"""Who asks the upstream: the caller, whose refusal it is, or the tier under its own name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from certificates import Authority
from harness import DCE, compile_request, connected, graph_of, metrics, refused, total, wait_until
from servers import RunningServer

import lazyfx
from lazyfx.errors import DeniedError
from lazyfx_server.security.bearer_tokens import add_token
from lazyfx_server.settings.loading import load

ONE = ("--workers", "1")
KEY = "ab" * 32


def asked(tier: RunningServer, outcome: str) -> float:
    return total(metrics(tier.metrics_url), "lazyfx_upstream_requests_total", outcome=outcome)


def calls_of(server: RunningServer) -> float:
    return total(metrics(server.metrics_url), "lazyfx_requests_total")


def test_callers_ask_with_their_own_tokens_over_tls(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    authority = Authority(tmp_path)
    certificate, key = authority.issue("central")
    central_tokens, tier_tokens = tmp_path / "central.tokens", tmp_path / "tier.tokens"
    known = add_token(central_tokens, "team")
    guest = add_token(central_tokens, "guest")
    tier_tokens.write_bytes(central_tokens.read_bytes())
    # The central server has never heard of this one, or no longer knows it.
    only_here = add_token(tier_tokens, "team")
    central = launch(
        *ONE, "--tokens", str(central_tokens), "--server-certificate", str(certificate),
        "--server-key", str(key), "--quota-requests", "30", store=tmp_path / "central",
    )  # fmt: skip
    tier = launch(
        *ONE, "--tokens", str(tier_tokens), "--upstream", central.address,
        "--upstream-ca", str(authority.file), store=tmp_path / "tier",
    )  # fmt: skip

    graphs = [graph_of(float(number)) for number in range(5)]

    def status(token: str, number: int) -> str:
        with lazyfx.connect(tier.address, token=token) as client:
            return client.compile(graphs[number], [DCE]).cache.status

    assert status(known, 1) == "miss"
    before = calls_of(central)
    with pytest.raises(DeniedError):
        status("lazyfx_0123456789abcdef_" + "A" * 43, 2)
    with pytest.raises(DeniedError):
        status("nonsense", 1)
    assert calls_of(central) == before
    # Another tenant finds nothing of the first, here or there.
    assert status(guest, 1) == "miss"
    with pytest.raises(DeniedError, match="the upstream"):
        status(only_here, 3)
    # It was that caller's refusal: it is remembered for no other.
    with ThreadPoolExecutor(6) as pool:
        both = [pool.submit(status, t, 4) for t in (only_here, known) * 3]
        errors = [each.exception() for each in both]
    assert all(isinstance(error, DeniedError) or error is None for error in errors)
    assert all(error is None for error in errors[1::2])
    assert asked(tier, "refused") >= 1
    assert not any(token in line for line in (*tier.log, *central.log) for token in (known, guest))
    # When to try again is for the caller to know, too.
    with connected(tier.address) as stub:
        metadata = [("authorization", f"Bearer {guest}")]

        def flood() -> None:
            for number in range(40):
                request = compile_request(graph_of(100.0 + number), DCE)
                stub.Compile(request, timeout=60, metadata=metadata)

        told = refused(flood)
    assert told.code == "RESOURCE_EXHAUSTED"
    assert told.retry_after
    assert "the upstream" in told.message


def test_an_open_tier_shows_nobodys_token(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    tokens = tmp_path / "tokens"
    token = add_token(tokens, "team")
    central = launch(*ONE, "--tokens", str(tokens), store=tmp_path / "central")
    tier = launch(*ONE, "--upstream", central.address, store=tmp_path / "tier")
    # It does not identify its callers, so it must not act for one of them.
    with lazyfx.connect(tier.address, token=token) as client:
        assert client.compile(graph_of(1.0), [DCE]).cache.status == "miss"
    assert asked(tier, "denied") == 1
    assert sum("--upstream-token" in line for line in tier.log) == 1
    assert total(metrics(central.metrics_url), "lazyfx_lookups_total") == 0
    own = tmp_path / "own"
    own.write_text(token + "\n")
    tier = launch(
        *ONE, "--upstream", central.address, "--upstream-token", str(own), store=tmp_path / "other"
    )
    with lazyfx.connect(tier.address) as client:
        client.compile(graph_of(1.0), [DCE])
    assert asked(tier, "answered") == 1
    assert total(metrics(central.metrics_url), "lazyfx_lookups_total", result="miss") == 1


def test_a_tier_shows_its_certificate_and_follows_its_files(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    certificate, key = authority.issue("central")
    central = launch(
        *ONE, "--server-certificate", str(certificate), "--server-key", str(key),
        "--client-ca", str(authority.file), store=tmp_path / "central",
    )  # fmt: skip
    shown, private = stranger.issue("tier")
    tier = launch(
        *ONE, "--upstream", central.address, "--upstream-ca", str(authority.file),
        "--upstream-certificate", str(shown), "--upstream-key", str(private),
        store=tmp_path / "tier",
    )  # fmt: skip
    status = partial(total, name="lazyfx_upstream_in_use")
    assert status(metrics(tier.metrics_url)) == 0
    for source, target in zip(authority.issue("node-1"), (shown, private), strict=True):
        target.write_bytes(source.read_bytes())
    wait_until(lambda: status(metrics(tier.metrics_url)) == 1, "the upstream takes the new one")
    with lazyfx.connect(tier.address) as client:
        assert client.compile(graph_of(1.0), [DCE]).cache.status == "miss"
    assert asked(tier, "answered") == 1
    assert total(metrics(central.metrics_url), "lazyfx_lookups_total", result="miss") == 1


WRONG = {
    "itself": (["--upstream", "localhost:8700"], "is this server itself"),
    "itself, by all addresses": (
        ["--listen", "0.0.0.0:8700", "--insecure", "--upstream", "127.0.0.1:8700"],
        "is this server itself",
    ),
    "a URL": (["--upstream", "https://central"], "is a URL"),
    "settings without it": (["--upstream-ca", "system"], "requires --upstream"),
    "plaintext": (["--upstream", "central"], "another server could take its place"),
    "tokens in plaintext": (
        ["--upstream", "central", "--tokens", "t", "--upstream-verify-keys", KEY],
        "tokens could be read on the way",
    ),
    "its own token in plaintext": (
        ["--upstream", "central", "--upstream-token", "t", "--upstream-verify-keys", KEY],
        "tokens could be read on the way",
    ),
    "certificates of callers": (
        [
            "--upstream", "central", "--upstream-ca", "system", "--client-ca", "ca",
            "--server-certificate", "c", "--server-key", "k",
        ],
        "cannot be shown the certificates of callers",
    ),
    "a certificate without its key": (
        ["--upstream", "central", "--upstream-ca", "system", "--upstream-certificate", "c"],
        "must be set together",
    ),
    "a certificate in plaintext": (
        ["--upstream", "127.0.0.1:9", "--upstream-certificate", "c", "--upstream-key", "k"],
        "requires --upstream-ca",
    ),
    "a key that is none": (
        ["--upstream", "central", "--upstream-verify-keys", "ab"], "64 hex digits",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("flags", "told"), WRONG.values(), ids=WRONG)
def test_what_cannot_work_is_refused_at_the_start(
    flags: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load(flags)
    assert told in capsys.readouterr().err


RIGHT = {
    "loopback": ["--upstream", "127.0.0.1:9"],
    "TLS": ["--upstream", "central", "--upstream-ca", "system", "--tokens", "t"],
    "a pinned key": ["--upstream", "central", "--upstream-verify-keys", KEY],
    "a trusted network": ["--upstream", "central", "--upstream-insecure", "--tokens", "t"],
    "its own token for callers with certificates": [
        "--upstream", "central", "--upstream-ca", "system", "--client-ca", "ca",
        "--server-certificate", "c", "--server-key", "k", "--upstream-token", "t",
    ],
    "its own certificate for callers with certificates": [
        "--upstream", "central", "--upstream-ca", "system", "--client-ca", "ca",
        "--server-certificate", "c", "--server-key", "k",
        "--upstream-certificate", "c", "--upstream-key", "k",
    ],
}  # fmt: skip


@pytest.mark.parametrize("flags", RIGHT.values(), ids=RIGHT)
def test_what_can_work_is_accepted(flags: list[str]) -> None:
    assert load(flags).upstream.upstream is not None
