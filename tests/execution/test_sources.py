"""Which workers are forked, and which begin with a new interpreter."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.execution import ProcessExecutor, WorkerCrashed
from lazyfx_server.settings.limits import WorkerLimits
from lazyfx_server.settings.pass_settings import NativeSettings
from lazyfx_server.settings.service_settings import WorkerSettings
from lazyfx_server.workers import pools, starting


class Closed:
    """Starts nothing, and says its name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def spawn(self, target: Callable[..., None], arguments: tuple[object, ...]) -> None:
        raise OSError(self._name)


SOURCES = pools.Sources(Closed("forked"), Closed("spawned"))  # type: ignore[arg-type]


async def source_of(executor: ProcessExecutor | None) -> str:
    assert executor is not None
    with pytest.raises(WorkerCrashed) as caught:
        await executor.start()
    return "forked" if "forked" in str(caught.value) else "spawned"


@pytest.fixture
def gpu(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(starting, "_GPU", tmp_path if request.param else tmp_path / "none")


@pytest.mark.parametrize(
    ("gpu", "method", "expected"),
    [
        (False, "auto", "forked"),
        (True, "auto", "spawned"),
        (True, "forkserver", "forked"),
        (False, "spawn", "spawned"),
    ],
    indirect=["gpu"],
)
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++, which Inductor compiles with")
async def test_native_workers(gpu: None, method: str, expected: str) -> None:
    settings = NativeSettings(native="on", native_unconfined=True, native_start_method=method)  # type: ignore[arg-type]
    made = pools.native_pools(settings, SOURCES, lambda _: None)
    assert made is not None
    assert await source_of(made.jobs) == expected
    # They run a compiler and nothing of torch, so they need no GPU.
    assert await source_of(made.builds) == "forked"
    # Inductor is prepared only where workers are forked from the process that prepares it.
    start = starting.worker_start(WorkerSettings(), settings, (), "", "text")
    assert bool(start.prepared) == (expected == "forked")


@pytest.mark.parametrize("gpu", [True], indirect=True)
async def test_what_asks_for_devices_is_not_forked(gpu: None) -> None:
    assert await source_of(pools.device_worker(SOURCES, lambda _: None)) == "spawned"


@pytest.mark.parametrize("gpu", [True, False], indirect=True)
async def test_pass_workers_are_forked(gpu: None) -> None:
    made = pools.pass_workers(WorkerSettings(), WorkerLimits(), SOURCES, (), lambda _: None)
    assert await source_of(made) == "forked"


@pytest.mark.parametrize("gpu", [False], indirect=True)
def test_without_gpus_nobody_is_asked_for_them(gpu: None) -> None:
    assert pools.device_worker(SOURCES, lambda _: None) is None
