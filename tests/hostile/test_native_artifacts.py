"""Native artifacts that were tampered with, re-signed, swapped or replayed are never opened."""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile.relay import Edit, relayed

from lazyfx.artifacts.aot_packages import write_package
from lazyfx.backend import reset_backend_report
from lazyfx.errors import ArtifactError
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.security.signing import read_keys

if TYPE_CHECKING:
    from servers import RunningServer

pytestmark = pytest.mark.long

PREFIX = b"lazyfx artifact statement 1\0"
X = torch.linspace(-1, 1, 8)


def model(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * 3


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("keys") / "signing.pem"


@pytest.fixture(scope="module")
def server(launch_for_file: Callable[..., RunningServer], key_file: Path) -> RunningServer:
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which Inductor compiles with")
    running = launch_for_file("--native", "--workers", "1", "--signing-key", str(key_file))
    compiled_at(running.address)
    return running


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    yield
    torch._dynamo.reset()


def compiled_at(address: str, **options: Any) -> torch.Tensor:
    """The model's result, computed by a server's artifact."""
    torch._dynamo.reset()
    reset_backend_report()
    options = {"address": address, "on_error": "raise", "timeout": 300.0, **options}
    result: torch.Tensor = torch.compile(model, backend="lazyfx", options=options)(X)
    return result


class Evil:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self._marker = str(marker)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self._marker,)


def poisoned(data: bytes, marker: Path) -> bytes:
    bundle = pb.NativeBundle.FromString(data)
    bundle.compiled = pickle.dumps(Evil(marker))
    return bundle.SerializeToString()


def digest(data: bytes) -> graph_pb2.Digest:
    return graph_pb2.Digest(sha256=hashlib.sha256(data).digest(), size_bytes=len(data))


def edits(marker: Path, own: Ed25519PrivateKey) -> dict[str, Edit]:
    """What may happen to an artifact in transit, by name."""

    def trailer_of(data: bytes, trailer: pb.ArtifactTrailer) -> pb.ArtifactTrailer:
        return pb.ArtifactTrailer(digest=digest(data), signature=trailer.signature)

    def signed(change: Callable[[pb.ArtifactStatement], object], key: Ed25519PrivateKey) -> Edit:
        def edit(
            _request: pb.GetArtifactRequest, data: bytes, trailer: pb.ArtifactTrailer
        ) -> tuple[bytes, pb.ArtifactTrailer]:
            evil = poisoned(data, marker)
            statement = pb.ArtifactStatement.FromString(trailer.signature.statement)
            statement.artifact.CopyFrom(digest(evil))
            change(statement)
            written = statement.SerializeToString()
            public = key.public_key().public_bytes_raw()
            signature = pb.ArtifactSignature(
                statement=written,
                signature=key.sign(PREFIX + written),
                key_id=hashlib.sha256(public).digest()[:8],
            )
            return evil, pb.ArtifactTrailer(digest=digest(evil), signature=signature)

        return edit

    def flipped(
        _request: pb.GetArtifactRequest, data: bytes, trailer: pb.ArtifactTrailer
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        middle = len(data) // 2
        changed = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        return changed, trailer_of(changed, trailer)

    def replaced(
        _request: pb.GetArtifactRequest, data: bytes, trailer: pb.ArtifactTrailer
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        evil = poisoned(data, marker)
        return evil, trailer_of(evil, trailer)

    def unsigned(
        _request: pb.GetArtifactRequest, data: bytes, _trailer: pb.ArtifactTrailer
    ) -> tuple[bytes, pb.ArtifactTrailer]:
        evil = poisoned(data, marker)
        return evil, pb.ArtifactTrailer(digest=digest(evil))

    def another_kind(statement: pb.ArtifactStatement) -> None:
        statement.kind = pb.ARTIFACT_KIND_PICKLE

    def another_tenant(statement: pb.ArtifactStatement) -> None:
        # The key of a module is made with its tenant's secret: another tenant's is another one.
        statement.module_key = hashlib.sha256(statement.module_key).digest()

    def ended(statement: pb.ArtifactStatement) -> None:
        statement.expires.FromSeconds(statement.created.ToSeconds() - 3600)

    return {
        "a byte flipped": flipped,
        "another content": replaced,
        "no signature": unsigned,
        "another key": signed(lambda statement: None, Ed25519PrivateKey.generate()),
        "another kind": signed(another_kind, own),
        "another tenant": signed(another_tenant, own),
        "an end that has come": signed(ended, own),
    }


def test_nothing_but_what_the_server_made_is_opened(
    server: RunningServer, key_file: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    with relayed(server.address) as (relay, address):
        torch.testing.assert_close(compiled_at(address), model(X))
        honest = relay.edit
        for name, edit in edits(marker, read_keys(key_file)[0]).items():
            relay.edit = edit
            with pytest.raises(Exception, match=r"not opened|signature|signed") as refusal:
                compiled_at(address)
            assert "Untrusted" in repr(refusal.value) + repr(refusal.value.__cause__), name
            assert not marker.exists(), name
        relay.edit = honest
        torch.testing.assert_close(compiled_at(address), model(X))


def test_an_artifact_for_other_settings_is_not_opened(
    server: RunningServer, tmp_path: Path
) -> None:
    kept: list[tuple[bytes, pb.ArtifactTrailer]] = []
    with relayed(server.address) as (relay, address):
        relay.edit = lambda request, data, trailer: kept.append((data, trailer)) or kept[0]
        torch.testing.assert_close(compiled_at(address), model(X))
        with torch.no_grad(), pytest.raises(Exception, match="different settings"):
            compiled_at(address)


def _archive(*members: tuple[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, data in members:
            archive.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize(
    "archive",
    [
        _archive(("p/a", bytes(1 << 20)), compression=zipfile.ZIP_DEFLATED),
        _archive(("p/a", b"1"), ("p/a", b"2")),
        _archive(("/p/a", b"1")),
        _archive(("p/../../a", b"1")),
        _archive(),
        b"not an archive",
    ],
)
def test_a_package_that_grows_or_leaves_its_folder_is_not_written(
    archive: bytes, tmp_path: Path
) -> None:
    path = tmp_path / "model.pt2"
    with pytest.raises(ArtifactError):
        write_package(pb.AotPackage(archive=archive), {}, path)
    assert not path.exists()
    write_package(pb.AotPackage(archive=_archive(("p/a", b"1"))), {}, path)
    assert path.exists()
