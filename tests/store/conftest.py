"""Redis and S3 servers of the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import store_servers
from remote_stores import key


@pytest.fixture
def server() -> Iterator[store_servers.Server]:
    """A Redis of the test's own, which it may kill."""
    started = store_servers.redis()
    yield started
    started.kill()


@pytest.fixture
def bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty part of a bucket; the environment tells where it is."""
    for name, value in store_servers.s3_variables(store_servers.running("moto")).items():
        monkeypatch.setenv(name, value)
    return f"s3://shared/{key(request.node.name)[-12:]}"


@pytest.fixture(scope="module")
def store_servers_end() -> Iterator[None]:
    """For files that start servers which tests share."""
    yield
    store_servers.stop_all()
