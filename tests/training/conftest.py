"""Fixtures of the tests of torch.compile(backend="lazyfx")."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import start_server
from training.counting import CountedCompilers, counted_compilers

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
def compilers(needs_gxx: None) -> Iterator[CountedCompilers]:
    """The C++ compiler of `native_server`."""
    with counted_compilers() as counted:
        yield counted


@pytest.fixture(scope="session")
def native_server(
    tmp_path_factory: pytest.TempPathFactory, compilers: CountedCompilers
) -> Iterator[Any]:
    """One server that makes native artifacts, for all tests of this folder."""
    store, environment = tmp_path_factory.mktemp("native"), compilers.environment
    running = start_server(store, "--native", "--workers", "1", environment=environment)
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _no_memory_of_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests of a run would be one job; `test_prefetch.py` turns it on."""
    monkeypatch.setenv("LAZYFX_PREFETCH", "false")


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that has compiled nothing yet."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
