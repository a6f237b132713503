"""Each reason why a server is unreachable has its own message, in Python and on the command line."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hostile.certificates import Authority
from typer.testing import CliRunner

import lazyfx
from lazyfx.calls.diagnosing import diagnose, not_a_server
from lazyfx.cli.application import app
from lazyfx.errors import DeniedError, ServiceError, TimedOutError, UnavailableError

if TYPE_CHECKING:
    from servers import RunningServer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def encrypted(
    launch_for_file: Callable[..., RunningServer],
    authority: Authority,
    tmp_path_factory: pytest.TempPathFactory,
) -> RunningServer:
    """Speaks TLS, and asks for a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    made = CliRunner().invoke(app, ["token", "team", "--file", str(tokens)])
    assert made.exit_code == 0
    certificate, key = authority.issue("server")
    return launch_for_file(
        "--server-certificate", str(certificate), "--server-key", str(key), "--tokens", str(tokens)
    )


@pytest.fixture
def silent() -> Iterator[str]:
    """Accepts connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def reported(
    address: str, monkeypatch: pytest.MonkeyPatch, kind: type[ServiceError], **options: object
) -> str:
    """The message of a failing call, after a check that a command prints the same."""
    with (
        lazyfx.connect(address, **options) as client,  # type: ignore[arg-type]
        pytest.raises(kind) as failed,
    ):
        client.server_info()
    sentence = str(failed.value).partition(": ")[2].partition(" (details:")[0]
    tls = options.get("tls")
    if isinstance(tls, lazyfx.Tls):
        monkeypatch.setenv("LAZYFX_CA", str(tls.ca))
        if tls.server_name:
            monkeypatch.setenv("LAZYFX_SERVER_HOST", tls.server_name)
    elif tls:
        monkeypatch.setenv("LAZYFX_CA", "system")
    if token := options.get("token"):
        monkeypatch.setenv("LAZYFX_TOKEN", str(token))
    command = CliRunner().invoke(app, ["passes", "--address", address])
    assert command.exit_code == 1
    assert sentence in command.output
    assert command.output.count("\n") == 1
    return sentence


def test_a_server_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reported("127.0.0.1:1", monkeypatch, UnavailableError)
    assert said.startswith("no server answers at 127.0.0.1:1")
    assert "lazyfx serve" in said


def test_a_host_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    said = reported("no-such-host.invalid:8700", monkeypatch, UnavailableError)
    assert said.startswith("'no-such-host.invalid' cannot be resolved")


def test_a_server_with_tls_reached_without(
    encrypted: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = reported(encrypted.address, monkeypatch, UnavailableError)
    assert "speaks TLS, but this client does not" in said
    assert "LAZYFX_CA" in said


def test_a_server_without_tls_reached_with_it(
    server: RunningServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = lazyfx.Tls(ca=authority.file)
    said = reported(server.address, monkeypatch, UnavailableError, tls=tls)
    assert "does not speak TLS, but this client does" in said


def test_a_certificate_of_an_unknown_authority(
    encrypted: RunningServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = lazyfx.Tls(ca=Authority(tmp_path, "other").file)
    said = reported(encrypted.address, monkeypatch, UnavailableError, tls=other)
    assert "is not accepted" in said
    assert "LAZYFX_CA" in said
    assert "is not accepted" in reported(encrypted.address, monkeypatch, UnavailableError, tls=True)


def test_a_certificate_of_another_host(
    encrypted: RunningServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = lazyfx.Tls(ca=authority.file, server_name="elsewhere.example")
    said = reported(encrypted.address, monkeypatch, UnavailableError, tls=tls)
    assert "LAZYFX_SERVER_HOST" in said


def test_a_wrong_token(
    encrypted: RunningServer, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    tls = lazyfx.Tls(ca=authority.file)
    said = reported(encrypted.address, monkeypatch, DeniedError, tls=tls, token="lazyfx_wrong")
    assert "token is unknown or was revoked" in said


def test_diagnosing_a_silent_listener(
    silent: str, monkeypatch: pytest.MonkeyPatch, authority: Authority
) -> None:
    for tls in (None, lazyfx.Tls(ca=authority.file)):
        said = reported(silent, monkeypatch, UnavailableError, tls=tls)
        assert said.startswith(f"{silent} accepts connections but does not answer")


async def test_diagnosing_a_silent_listener_of_an_asynchronous_client(silent: str) -> None:
    async with lazyfx.connect_async(silent) as client:
        graph = torch.fx.symbolic_trace(torch.nn.ReLU())
        for call in (
            client.server_info(),
            client.compile(graph),
            anext(aiter(client.compile_many([(graph, [])]))),
        ):
            with pytest.raises(UnavailableError, match="accepts connections but does not answer"):
                await call


def test_a_server_that_stops_answering_is_bounded_in_time(
    launch: Callable[..., RunningServer],
) -> None:
    server = launch()
    with lazyfx.connect(server.address, timeout=2) as client:
        client.server_info()
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TimedOutError) as failed:
                client.server_info()
            with (
                lazyfx.connect(server.address) as other,
                pytest.raises(UnavailableError, match="the server hangs or is stopped"),
            ):
                other.server_info()
        finally:
            os.kill(server.pid, signal.SIGCONT)
        client.server_info()
    assert f"the server at {server.address} did not answer within the timeout" in str(failed.value)
    assert "timeout=" in str(failed.value)


def answering(*answers: bytes) -> Iterator[str]:
    """A program that accepts connections, sends this, and closes them."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listening.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(5)
                    with contextlib.suppress(OSError):
                        connection.recv(4096)
                        for answer in answers:
                            connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        listening.shutdown(socket.SHUT_RDWR)


def test_the_port_of_the_metrics(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = server.metrics_url.removeprefix("http://").partition("/")[0]
    said = reported(metrics, monkeypatch, UnavailableError)
    assert said.startswith(f"the program that answers at {metrics} is not a lazyfx server")


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"\0\0\0\7\0\0\0\0\0"]
)
def test_another_program(answer: bytes) -> None:
    for address in answering(answer):
        said = diagnose(address, None)
        assert said is not None
        assert said.startswith(f"the program that answers at {address} is not a lazyfx server")
        said = diagnose(address, lazyfx.Tls())
        assert said is not None
        assert "does not speak TLS" in said


def test_a_listener_that_never_answers(silent: str) -> None:
    for tls in (None, lazyfx.Tls()):
        said = diagnose(silent, tls)
        assert said is not None
        assert said.startswith(f"{silent} accepts connections but does not answer")


def test_a_listener_that_closes_connections_at_once() -> None:
    for address in answering():
        said = diagnose(address, None)
        assert said is not None
        assert "does not answer" in said


@pytest.mark.parametrize("tls", [None, lazyfx.Tls()])
def test_a_server_that_dies_meanwhile(tls: lazyfx.Tls | None) -> None:
    """The kernel still accepts connections while it takes a killed process apart."""
    listening = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{listening.getsockname()[1]}"

    def die() -> None:
        connection, _ = listening.accept()
        listening.close()
        connection.close()

    dying = threading.Thread(target=die)
    dying.start()
    said = diagnose(address, tls)
    dying.join()
    assert said is not None
    assert said.startswith(f"no server answers at {address}")


def test_a_socket_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = reported(f"unix:{tmp_path}/none", monkeypatch, UnavailableError)
    assert said.startswith("no server answers at unix:")


def test_a_server_shows_nothing_wrong(server: RunningServer) -> None:
    assert diagnose(server.address, None) is None


def test_a_status_of_another_kind_of_server() -> None:
    said = not_a_server("cache:8700", "Received http2 header with status: 404")
    assert said is not None
    assert "is not a lazyfx server" in said
    said = not_a_server("cache:8700", "Method not found!")
    assert said is not None
    assert "has another version" in said
    assert not_a_server("cache:8700", "anything else") is None
