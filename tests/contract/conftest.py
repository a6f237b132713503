from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import store_servers

sys.path.insert(0, str(Path(__file__).parents[1] / "execution"))


@pytest.fixture(scope="session", autouse=True)
def store_servers_end() -> Iterator[None]:
    yield
    store_servers.stop_all()
