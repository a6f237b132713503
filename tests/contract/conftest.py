from __future__ import annotations

from collections.abc import Iterator

import pytest
import store_servers


@pytest.fixture(scope="session", autouse=True)
def store_servers_end() -> Iterator[None]:
    yield
    store_servers.stop_all()
