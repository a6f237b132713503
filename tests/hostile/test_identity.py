"""Authentication: tokens and certificates are checked before anything else is read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import nursery
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hostile.certificates import Authority
from server.harness import graph_of, metrics, refused, total, wait_until
from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app
from lazyfx.errors import DeniedError, LazyfxError, UnavailableError
from lazyfx.v1 import compiler_pb2 as pb

if TYPE_CHECKING:
    from servers import RunningServer

METHODS = {
    "Compile": ("unary_unary", pb.CompileResponse),
    "CompileBatch": ("stream_stream", pb.CompileBatchResponse),
    "GetArtifact": ("unary_stream", pb.GetArtifactResponse),
    "FindMissingBlobs": ("unary_unary", pb.FindMissingBlobsResponse),
    "UploadBlobs": ("stream_unary", pb.UploadBlobsResponse),
    "ListPasses": ("unary_unary", pb.ListPassesResponse),
    "GetServerInfo": ("unary_unary", pb.GetServerInfoResponse),
    "GetStats": ("unary_unary", pb.GetStatsResponse),
    "Prefetch": ("unary_stream", pb.PrefetchResponse),
    "RememberJob": ("unary_unary", pb.RememberJobResponse),
}


def new_token(file: Path, tenant: str) -> str:
    ran = CliRunner().invoke(app, ["token", tenant, "--file", str(file)])
    assert ran.exit_code == 0, ran.output
    return ran.stdout.strip()


@pytest.fixture(scope="module")
def token_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokens") / "tokens"


@pytest.fixture(scope="module")
def token(token_file: Path) -> str:
    return new_token(token_file, "ml-team")


@pytest.fixture(scope="module")
def server(
    launch_for_file: Callable[..., RunningServer], token_file: Path, token: str
) -> RunningServer:
    return launch_for_file("--tokens", str(token_file), "--reflection", "--log-level", "debug")


def raw_call(address: str, method: str, data: bytes, shown: list[tuple[str, str]]) -> object:
    """Any bytes to any method, past every generated stub."""
    shape, _ = METHODS.get(method, ("stream_stream", None))
    path = method if method.startswith("/") else f"/lazyfx.v1.GraphCompiler/{method}"
    with grpc.insecure_channel(address) as channel:
        call = getattr(channel, shape)(path)
        request = iter([data]) if shape.startswith("stream") else data
        answer = call(request, metadata=shown, timeout=30)
        return list(answer) if shape.endswith("stream") else answer


SHOWN = {
    "nothing": [],
    "an empty token": [("authorization", "Bearer ")],
    "another scheme": [("authorization", "Basic dXNlcjpwYXNz")],
    "a made-up token": [("authorization", "Bearer lazyfx_0123456789abcdef_" + "A" * 43)],
    "a JWT that says it needs no signature": [
        ("authorization", "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJtbC10ZWFtIn0.")
    ],
    "a long one": [("authorization", "Bearer " + "lazyfx_" * 500)],
}


@pytest.mark.parametrize(
    "method", [*METHODS, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"]
)
def test_every_method_authenticates_before_it_reads(server: RunningServer, method: str) -> None:
    # The bytes are not a message: reading them would fail with another status.
    for what, shown in SHOWN.items():
        refusal = refused(lambda shown=shown: raw_call(server.address, method, b"\xff" * 64, shown))
        assert refusal.code == "UNAUTHENTICATED", what
        assert "token" in refusal.message


def test_a_valid_id_with_another_secret_is_refused(server: RunningServer, token: str) -> None:
    for wrong in (token[:-1] + ("A" if token[-1] != "A" else "B"), token + "A", token.upper()):
        with lazyfx.connect(server.address, token=wrong) as client, pytest.raises(DeniedError):
            client.stats()


def test_a_refused_caller_is_logged_without_its_credentials(server: RunningServer) -> None:
    shown = "lazyfx_0123456789abcdef_" + "B" * 43
    with pytest.raises(grpc.RpcError):
        raw_call(server.address, "Compile", b"", [("authorization", f"Bearer {shown}")])
    wait_until(lambda: any("refused a caller" in line for line in server.log), "a line about it")
    line = next(line for line in server.log if "refused a caller" in line)
    assert "WARNING" in line
    assert "method=Compile peer=ipv4:127.0.0.1:" in line
    assert not [line for line in server.log if "B" * 20 in line]


def test_probes_need_no_token(server: RunningServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_a_client_with_the_token_is_served(
    server: RunningServer, token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with lazyfx.connect(server.address, token=token) as client:
        assert client.server_info().identification == "tokens"
        module = client.compile(graph_of(), passes=["dead_code_elimination"])
        module.save_pickle(tmp_path / "m.pkl")
        assert [i for i, _ in client.compile_many([(graph_of(2.0), [])])] == [0]
    monkeypatch.setenv("LAZYFX_TOKEN", token)
    assert CliRunner().invoke(app, ["stats", "--address", server.address]).exit_code == 0
    monkeypatch.delenv("LAZYFX_TOKEN")
    (tmp_path / "token").write_text(token + "\n")
    monkeypatch.setenv("LAZYFX_TOKEN_FILE", str(tmp_path / "token"))
    with lazyfx.connect(server.address) as client:
        assert client.passes()


def test_tokens_come_and_go_without_a_restart_and_are_written_nowhere(
    server: RunningServer, token_file: Path, token: str
) -> None:
    second = new_token(token_file, "guests")
    with lazyfx.connect(server.address, token=second) as client:
        assert client.stats() is not None
        lines = token_file.read_text().splitlines()
        token_file.write_text("\n".join(line for line in lines if "guests" not in line) + "\n")
        with pytest.raises(DeniedError):
            client.stats()
    # A broken file admits no new callers, and locks none out.
    kept = token_file.read_text()
    token_file.write_text(kept + "not a line\n")
    with lazyfx.connect(server.address, token=token) as client:
        assert client.stats() is not None
    token_file.write_text(kept)
    wait_until(
        lambda: any("expected 'id sha256 tenant'" in line for line in server.log), "a log line"
    )
    assert token_file.stat().st_mode & 0o077 == 0
    for secret in (token, second):
        assert secret not in token_file.read_text()
        assert not any(secret in line or secret[-43:] in line for line in server.log)


def test_refusals_are_counted_without_new_labels(server: RunningServer) -> None:
    before = metrics(server.metrics_url)
    refused(lambda: raw_call(server.address, "Compile", b"", []))
    refused(lambda: raw_call(server.address, "/no.such/Method", b"", []))
    after = metrics(server.metrics_url)
    assert after.keys() == before.keys()
    for method in ("Compile", "other"):
        labels = {"method": method, "code": "UNAUTHENTICATED"}
        name = "lazyfx_requests_total"
        assert total(after, name, **labels) == total(before, name, **labels) + 1


def test_a_token_never_travels_in_the_clear_to_another_machine(token: str) -> None:
    with pytest.raises(LazyfxError, match="in plaintext"):
        lazyfx.connect("example.org:8700", token=token)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def mutual(launch_for_file: Callable[..., RunningServer], authority: Authority) -> RunningServer:
    certificate, key = authority.issue("server")
    return launch_for_file(
        "--server-certificate", str(certificate), "--server-key", str(key),
        "--client-ca", str(authority.file),
    )  # fmt: skip


def test_mutual_tls_identifies_the_caller(
    mutual: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("trainer")
    tls = lazyfx.Tls(ca=authority.file, certificate=certificate, key=key)
    with lazyfx.connect(mutual.address, tls=tls) as client:
        assert client.server_info().identification == "certificates"
        module = client.compile(graph_of())
        assert module.save_pickle(tmp_path / "m.pkl").exists()
    other, other_key = authority.issue("another service")  # a space: cannot be a tenant
    with (
        lazyfx.connect(mutual.address, tls=lazyfx.Tls(authority.file, other, other_key)) as client,
        pytest.raises(DeniedError, match="common name"),
    ):
        client.stats()


def test_without_the_right_certificate_there_is_no_connection(
    mutual: RunningServer, authority: Authority, tmp_path: Path
) -> None:
    stranger, stranger_key = Authority(tmp_path, "stranger").issue("trainer")
    for tls in (
        None,
        lazyfx.Tls(authority.file),
        lazyfx.Tls(authority.file, stranger, stranger_key),
    ):
        with (
            lazyfx.connect(mutual.address, tls=tls, timeout=20) as client,
            pytest.raises(UnavailableError),
        ):
            client.stats()
    own, own_key = authority.issue("trainer")
    impostor = lazyfx.Tls(tmp_path / "stranger.pem", own, own_key)
    with (
        lazyfx.connect(mutual.address, tls=impostor, timeout=20) as client,
        pytest.raises(UnavailableError),
    ):
        client.stats()


def test_a_server_s_certificate_is_replaced_without_a_restart(
    launch: Callable[..., RunningServer], authority: Authority, tmp_path: Path
) -> None:
    certificate, key = authority.issue("replaced")
    server = launch("--server-certificate", str(certificate), "--server-key", str(key))
    renewed = Authority(tmp_path, "renewed")
    new_certificate, new_key = renewed.issue("replaced")
    with lazyfx.connect(server.address, tls=lazyfx.Tls(authority.file)) as client:
        assert client.stats() is not None
    key.write_bytes(new_key.read_bytes())
    certificate.write_bytes(new_certificate.read_bytes())
    with lazyfx.connect(server.address, tls=lazyfx.Tls(renewed.file)) as client:
        assert client.stats() is not None


def test_a_certificate_of_another_service_is_refused(
    launch: Callable[..., RunningServer], authority: Authority
) -> None:
    certificate, key = authority.issue("named")
    server = launch(
        "--server-certificate", str(certificate), "--server-key", str(key),
        "--client-ca", str(authority.file), "--client-names", "trainer",
    )  # fmt: skip
    trainer = lazyfx.Tls(authority.file, *authority.issue("trainer"))
    with lazyfx.connect(server.address, tls=trainer) as client:
        assert client.stats() is not None
    other = lazyfx.Tls(authority.file, *authority.issue("other-service"))
    with (
        lazyfx.connect(server.address, tls=other) as client,
        pytest.raises(DeniedError, match="other-service"),
    ):
        client.stats()


EXPOSED = {
    "nothing": [],
    "tokens in the clear": ["--tokens", "{tokens}"],
    "TLS without identification of callers": [
        "--server-certificate", "{cert}", "--server-key", "{key}",
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", EXPOSED)
def test_other_machines_are_served_only_with_tls_and_identity(
    case: str, authority: Authority, token_file: Path, token: str
) -> None:
    certificate, key = authority.issue("exposed")
    places = {"tokens": token_file, "cert": certificate, "key": key}
    flags = [flag.format(**places) for flag in EXPOSED[case]]
    command = ["-m", "lazyfx_server", "--listen", "0.0.0.0:0", *flags]
    ran = nursery.run("server", command, timeout=60)
    assert ran.returncode == 2
    assert "--insecure" in ran.stderr


def test_tls_with_tokens_may_be_reached_from_other_machines(
    launch: Callable[..., RunningServer], authority: Authority, token_file: Path, token: str
) -> None:
    certificate, key = authority.issue("public")
    server = launch(
        "--listen", "0.0.0.0:0", "--tokens", str(token_file),
        "--server-certificate", str(certificate), "--server-key", str(key),
    )  # fmt: skip
    address = server.address.replace("0.0.0.0", "localhost")
    tls = lazyfx.Tls(authority.file)
    with lazyfx.connect(address, token=token, tls=tls) as client:
        assert client.compile(graph_of()).code
    with lazyfx.connect(address, tls=tls) as client, pytest.raises(DeniedError):
        client.stats()
