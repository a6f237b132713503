"""Servers that lose what they made, or go and come back: artifacts are made again, jobs go remote."""

from __future__ import annotations

import shutil
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from training.loops import Net, assert_same, batches, train
from training.test_waiting import captured

import lazyfx
from lazyfx.backend import reset_backend_report, sessions


@pytest.fixture
def address() -> str:
    """A port to which a server can come back."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"127.0.0.1:{listener.getsockname()[1]}"


@pytest.mark.slow
def test_a_native_artifact_of_a_lost_module_is_made_again(
    launch: Any, needs_gxx: None, address: str, tmp_path: Path
) -> None:
    graph, request = captured(width=60)
    store = tmp_path / "store"
    flags = ("--native", "--workers", "1", "--listen", address)
    server = launch(*flags, store=store)
    stages: list[str] = []
    with lazyfx.connect(address) as client:
        module = client.compile(graph)
        first = module.key
        assert server.stop() == 0
        shutil.rmtree(store)
        launch(*flags, store=store)
        data = module.native(
            request, timeout=250, on_progress=lambda progress: stages.append(progress.stage)
        )
        assert len(data) > 10_000
        assert module.key != first, "the tenant's key is another one"
        assert set(stages) <= {"waiting", "tracing", "compiling", "packing"}
        assert stages, "progress is reported after the module was compiled again"
        assert module.provenance("inductor")


def test_a_server_that_is_back_is_asked_again(
    launch: Any, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sessions, "DOWN_SECONDS", 3600.0)

    def trained(width: int) -> lazyfx.BackendReport:
        torch._dynamo.reset()
        reset_backend_report()
        options = {"address": address, "compile": "eager", "on_error": "eager"}
        model = Net(width=width)
        done = train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
        assert_same(done, train(Net(width=width), batches()))
        return lazyfx.backend_report()

    for width in (20, 21):  # the second is not sent: the server was away a moment ago
        with pytest.warns(lazyfx.FallbackWarning, match="UNAVAILABLE|could not help"):
            assert trained(width).fallbacks == {"UNAVAILABLE": 1}
    launch("--workers", "1", "--listen", address, store=tmp_path / "store")
    # The channel tries to connect every two seconds.
    for width in range(22, 60):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", lazyfx.FallbackWarning)
            report = trained(width)
        if report.remote:
            break
        time.sleep(0.2)
    assert (report.remote, report.fallbacks) == (1, {})
