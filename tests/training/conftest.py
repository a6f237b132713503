"""Fixtures of the tests of torch.compile(backend="lazyfx")."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import start_server

from lazyfx.backend import reset_backend_report


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Nothing compiled before, nothing counted before."""
    torch._dynamo.reset()
    reset_backend_report()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="session")
def needs_gxx() -> None:
    """Skips where Inductor has no compiler."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++, which Inductor compiles with")


@pytest.fixture(scope="session")
def native_server(tmp_path_factory: pytest.TempPathFactory, needs_gxx: None) -> Iterator[Any]:
    """One server that makes native artifacts, for all tests of this folder."""
    running = start_server(tmp_path_factory.mktemp("native"), "--native", "--workers", "1")
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has compiled nothing yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
