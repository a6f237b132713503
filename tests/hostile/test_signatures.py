"""Artifacts that were changed, forged, swapped, expired or planted in the store."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile.relay import Relay, relayed
from server.harness import graph_of
from typer.testing import CliRunner

import lazyfx
from lazyfx.cli.application import app
from lazyfx.errors import LazyfxError, UntrustedArtifactError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.signing import read_keys
from lazyfx_server.store import DiskStore, VerifiedStore
from lazyfx_server.v1.worker_pb2 import ArtifactRecord

if TYPE_CHECKING:
    from servers import RunningServer

PREFIX = b"lazyfx artifact statement 1\0"
EVIL = b"cposix\nsystem\n(S'true'\ntR."


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "signing.pem"


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer], key_file: Path) -> RunningServer:
    return launch_for_file("--signing-key", str(key_file), "--server-name", "builder-7")


@pytest.fixture
def relay(server: RunningServer) -> Iterator[tuple[Relay, str]]:
    with relayed(server.address) as found:
        yield found


def _digest(data: bytes) -> graph_pb2.Digest:
    return graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))


def _trailer(data: bytes, signature: pb.ArtifactSignature) -> pb.ArtifactTrailer:
    return pb.ArtifactTrailer(digest=_digest(data), signature=signature)


def _save(address: str, path: Path, number: float = 1.0, **options: object) -> Path:
    with lazyfx.connect(address, **options) as client:  # type: ignore[arg-type]
        path.write_text(client.compile(graph_of(number)).code, encoding="utf-8")
        return path


def test_what_a_server_signed_is_opened_and_says_where_it_comes_from(
    server: RunningServer, key_file: Path, tmp_path: Path
) -> None:
    public = read_keys(key_file)[0].public_key().public_bytes_raw().hex()
    with lazyfx.connect(server.address, verify_keys=public) as client:
        module = client.compile(graph_of(), passes=["dead_code_elimination"])
        signed = {kind: module.provenance(kind) for kind in ("graph", "code", "picture")}
        # What the client builds is not signed; its provenance names the signed graph.
        here = ("pickle", "package", "torchscript", "exported_program")
        made = {kind: module.provenance(kind) for kind in here}
        assert torch.equal(module(torch.ones(2)), torch.full((2,), 2.0))
        text = module.code
    code = signed["code"]
    assert code.digest == hashlib.sha256(text.encode()).hexdigest()
    for kind, found in made.items():
        assert found == replace(signed["graph"], made_into=kind)
    for kind, found in signed.items():
        assert (found.kind, found.made_into) == (kind, "")
        assert found.module_key == module.key
        assert found.pipeline == module.report.pipeline == "dead_code_elimination"
        assert found.builder == "builder-7"
        assert found.torch_version == torch.__version__
        assert found.public_key == public
        assert found.created < found.expires


def test_keys_are_private_and_outlive_the_server(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    store = tmp_path / "kept"
    first = launch(store=store)
    made = store / ".keys" / "signing.pem"
    assert made.stat().st_mode & 0o777 == 0o600
    with lazyfx.connect(first.address) as client:
        before = [key.public_key for key in client.server_info().verify_keys]
    assert first.stop() == 0
    second = launch(store=store)
    with lazyfx.connect(second.address) as client:
        assert [key.public_key for key in client.server_info().verify_keys] == before
    assert second.stop() == 0
    made.chmod(0o644)
    with pytest.raises(RuntimeError, match="chmod 600"):
        launch(store=store)


def test_changed_bytes_are_not_opened(relay: tuple[Relay, str], tmp_path: Path) -> None:
    relay[0].edit = lambda request, data, trailer: (EVIL, _trailer(EVIL, trailer.signature))
    with pytest.raises(UntrustedArtifactError, match="for a different artifact"):
        _save(relay[1], tmp_path / "m.pkl")
    assert not (tmp_path / "m.pkl").exists()


def test_unsigned_bytes_are_not_opened_but_graph_data_needs_no_signature(
    relay: tuple[Relay, str], tmp_path: Path
) -> None:
    relay[0].edit = lambda request, data, trailer: (data, _trailer(data, pb.ArtifactSignature()))
    with pytest.raises(UntrustedArtifactError, match="not signed"):
        _save(relay[1], tmp_path / "m.pkl")
    with lazyfx.connect(relay[1]) as client:
        module = client.compile(graph_of())
        # Made here, of graph data.
        assert module.save_pickle(tmp_path / "graph.pkl").exists()
        assert torch.equal(module(torch.ones(2)), torch.full((2,), 2.0))
        for kind in ("code", "package", "source", "picture"):
            with pytest.raises(UntrustedArtifactError):
                module.provenance(kind)


def test_pinned_keys_hold_for_graph_data_too(
    relay: tuple[Relay, str], key_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    public = read_keys(key_file)[0].public_key().public_bytes_raw().hex()
    monkeypatch.setenv("LAZYFX_VERIFY_KEYS", public)
    with lazyfx.connect(relay[1]) as client:
        assert client.compile(graph_of(2.0)).graph_module() is not None
        relay[0].edit = lambda request, data, t: (data, _trailer(data, pb.ArtifactSignature()))
        with pytest.raises(UntrustedArtifactError, match="not signed"):
            client.compile(graph_of(3.0)).graph_module()


def test_a_forger_s_key_is_not_trusted(relay: tuple[Relay, str], tmp_path: Path) -> None:
    forger = Ed25519PrivateKey.generate()
    raw = forger.public_key().public_bytes_raw()
    own = pb.VerifyKey(key_id=hashlib.sha256(raw).digest()[:8], public_key=raw)

    def forge(
        request: pb.GetArtifactRequest, data: bytes, trailer: pb.ArtifactTrailer
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        statement = pb.ArtifactStatement.FromString(trailer.signature.statement)
        statement.artifact.CopyFrom(_digest(EVIL))
        written = statement.SerializeToString()
        signature = pb.ArtifactSignature(
            statement=written, signature=forger.sign(PREFIX + written), key_id=own.key_id
        )
        return EVIL, _trailer(EVIL, signature)

    with lazyfx.connect(relay[1]) as client:
        module = client.compile(graph_of(4.0))
        assert module.code  # the keys that the server names at first use are the ones that count
        relay[0].edit = forge
        relay[0].edit_info = lambda info: info.verify_keys.pop() and info.verify_keys.append(own)
        with pytest.raises(UntrustedArtifactError, match="not a trusted key"):
            module.picture().save(tmp_path / "m.pkl")
    assert not (tmp_path / "m.pkl").exists()


@pytest.mark.parametrize("aspect", ["module", "kind", "expired", "future"])
def test_a_signature_about_something_else_or_another_time_is_refused(
    relay: tuple[Relay, str], key_file: Path, tmp_path: Path, aspect: str
) -> None:
    key = read_keys(key_file)[0]

    def replay(
        request: pb.GetArtifactRequest, data: bytes, trailer: pb.ArtifactTrailer
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        statement = pb.ArtifactStatement.FromString(trailer.signature.statement)
        if aspect == "module":
            statement.module_key = bytes(32)
        elif aspect == "kind":
            statement.kind = pb.ARTIFACT_KIND_PICTURE
        elif aspect == "expired":
            statement.expires.FromSeconds(statement.created.ToSeconds() - 3600)
        else:
            statement.created.FromSeconds(statement.created.ToSeconds() + 3600)
        written = statement.SerializeToString()
        trailer.signature.statement = written
        trailer.signature.signature = key.sign(PREFIX + written)
        return data, trailer

    relay[0].edit = replay
    reason = {"expired": "expired at", "future": "in the future"}.get(
        aspect, "for a different artifact"
    )
    with pytest.raises(UntrustedArtifactError, match=reason):
        _save(relay[1], tmp_path / "m.pkl")
    assert not (tmp_path / "m.pkl").exists()


def test_a_plain_connection_elsewhere_needs_pinned_keys(
    server: RunningServer, key_file: Path, tmp_path: Path
) -> None:
    elsewhere = server.address.replace("127.0.0.1", "0.0.0.0")  # reaches us, and is not loopback
    with pytest.raises(UntrustedArtifactError, match="LAZYFX_VERIFY_KEYS"):
        _save(elsewhere, tmp_path / "m.pkl")
    public = read_keys(key_file)[0].public_key().public_bytes_raw().hex()
    assert _save(elsewhere, tmp_path / "m.pkl", verify_keys=[public]).exists()
    with pytest.raises(LazyfxError, match="64 hex digits"):
        lazyfx.connect(elsewhere, verify_keys="my-key")


def test_keys_rotate_without_a_restart(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    path = tmp_path / "rotated.pem"
    server = launch("--signing-key", str(path))
    runner = CliRunner()
    first = runner.invoke(app, ["keys", "--address", server.address]).stdout.split()
    with lazyfx.connect(server.address) as long_lived:
        assert long_lived.compile(graph_of(5.0)).code
        rotated = runner.invoke(app, ["keys", "--rotate", str(path)]).stdout.split()
        assert rotated[1:] == first
        module = long_lived.compile(graph_of(6.0))
        assert module.provenance("code").public_key == rotated[0]
    assert runner.invoke(app, ["keys", "--address", server.address]).stdout.split() == rotated
    assert _save(server.address, tmp_path / "a.pkl", verify_keys=rotated).exists()
    # What was signed with the key before is signed again, not refused.
    assert _save(server.address, tmp_path / "b.pkl", 5.0, verify_keys=rotated[0]).exists()
    with pytest.raises(UntrustedArtifactError, match="NOT THE ONE THAT YOU TRUST"):
        _save(server.address, tmp_path / "c.pkl", verify_keys=first)


def test_an_artifact_put_into_the_store_is_made_again(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    store = tmp_path / "shared"
    server = launch(store=store)
    with lazyfx.connect(server.address) as client:
        honest = client.compile(graph_of(7.0)).code
    assert server.stop() == 0
    evil = b"import os\n"

    async def poison() -> int:
        disk = VerifiedStore(DiskStore(store, 2**30))
        replaced = 0
        for file in (store / "artifacts").rglob("*"):
            if file.is_file():
                key = f"artifacts/{file.name}"
                record = ArtifactRecord.FromString(await disk.get(key) or b"")
                record.data = evil
                record.digest.CopyFrom(_digest(evil))
                await disk.put(key, record.SerializeToString())
                replaced += 1
        await disk.close()
        return replaced

    assert asyncio.run(poison()) > 0
    again = launch(store=store)
    with lazyfx.connect(again.address) as client:
        module = client.compile(graph_of(7.0))
        assert module.cache.status == "hit"
        assert module.code == honest
