from __future__ import annotations

from collections.abc import Iterator

import pytest
import store_servers
from replicas import Fleet, Start
from servers import RunningServer


@pytest.fixture(scope="module")
def redis_server() -> Iterator[store_servers.Server]:
    server = store_servers.redis()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def replica(
    redis_server: store_servers.Server,
    tmp_path_factory: pytest.TempPathFactory,
    launch_for_file: Start,
) -> Start:
    """Starts a server of the fleet, with a folder of its own."""
    keys = tmp_path_factory.mktemp("keys")

    def start(*flags: str) -> RunningServer:
        return launch_for_file(
            "--workers", "1",
            "--store", f"redis://127.0.0.1:{redis_server.port}/0",
            "--store-wait-seconds", "1",
            "--tenant-secret", str(keys / "tenants.key"),
            "--signing-key", str(keys / "signing.pem"),
            *flags,
        )  # fmt: skip

    return start


@pytest.fixture(scope="module")
def patient(replica: Start, redis_server: store_servers.Server) -> Fleet:
    """Three servers that wait for each other for longer than the test lasts."""
    flags = ("--store-lease-seconds", "60", "--store-hedge-seconds", "600")
    return Fleet([replica(*flags) for _ in range(3)], redis_server)


@pytest.fixture(scope="module")
def hasty(replica: Start, redis_server: store_servers.Server) -> Fleet:
    """Two servers that soon lose patience."""
    flags = ("--store-lease-seconds", "1", "--store-hedge-seconds", "2")
    return Fleet([replica(*flags) for _ in range(2)], redis_server)
