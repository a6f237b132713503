"""Whatever happens to the server, the job trains on; each case with a real training loop."""

from __future__ import annotations

import gc
import hashlib
import os
import signal
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from harness import metrics, total, wait_until
from hostile.relay import relayed
from torch import nn
from training.loops import Net, assert_same, batches, train

import lazyfx
from lazyfx.backend import close_sessions
from lazyfx.v1 import compiler_pb2 as pb


def train_through(address: str, model: nn.Module, **more: object) -> None:
    """Train three steps, with gradients and buffers as in eager."""
    options = {"address": address, "on_error": "eager", **more}
    reference = type(model)(width=model.first.out_features)
    done = train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    assert_same(done, train(reference, batches()))


def only_fallback() -> tuple[str, lazyfx.BackendReport]:
    report = lazyfx.backend_report()
    ((kind, count),) = report.fallbacks.items()
    assert count == len(report.graphs) == 1
    return kind, report


def test_absent_at_start_and_compiled_here_under_the_settings_asked_for() -> None:
    settings = {"mode": "reduce-overhead", "epilogue-fusion": False}
    with pytest.warns(lazyfx.FallbackWarning, match="compiled locally by Inductor") as caught:
        train_through("127.0.0.1:1", Net(), on_error="local", **settings)
    assert len([w for w in caught if w.category is lazyfx.FallbackWarning]) == 1
    kind, report = only_fallback()
    assert kind == "UNAVAILABLE"
    assert report.graphs[0].outcome == "local"


def assert_forgotten(address: str, **options: object) -> None:
    """Nothing keeps a model that was compiled, once its caller and dynamo have let go of it."""
    model = Net()
    options = {"address": address, "on_error": "eager", **options}
    train(model, batches(), torch.compile(model, backend="lazyfx", options=options))
    kept = weakref.ref(model)
    del model
    torch._dynamo.reset()

    # With wait=False a thread holds the graph until the server has compiled it. Collecting
    # garbage again and again meanwhile would leave it hardly a turn to run.
    for thread in threading.enumerate():
        if thread.name == "lazyfx-wait":
            thread.join(240)
            assert not thread.is_alive()

    def gone() -> bool:
        gc.collect()
        return kept() is None

    wait_until(gone, "nothing keeps the model")


@pytest.mark.filterwarnings("ignore::lazyfx.FallbackWarning")
@pytest.mark.parametrize("compiled_with", [{"compile": "eager"}, {"wait": False}, {}])
def test_what_was_compiled_is_not_kept(native_server: Any, compiled_with: dict[str, Any]) -> None:
    assert_forgotten(native_server.address, **compiled_with)
    for _ in range(2):  # the second time, the server is known to be away
        assert_forgotten("127.0.0.1:1", **compiled_with)
    outcomes = [graph.outcome for graph in lazyfx.backend_report().graphs]
    assert outcomes[-2:] == ["eager", "eager"]


@pytest.mark.long
def test_too_slow_then_killed_in_the_middle_of_a_compile(launch: Callable[..., Any]) -> None:
    server = launch("--native", "--workers", "1")
    with pytest.warns(lazyfx.FallbackWarning, match="DEADLINE_EXCEEDED"):
        train_through(server.address, Net(width=33), timeout=1.0)
    assert only_fallback()[0] == "DEADLINE_EXCEEDED"

    # The server did not answer in time; a new connection asks it again at once.
    close_sessions()
    torch._dynamo.reset()
    lazyfx.backend.reset_backend_report()

    def kill() -> None:
        def under_way() -> bool:
            return total(metrics(server.metrics_url), "lazyfx_in_flight", stage="render") > 0

        wait_until(under_way, "a native compile is under way")
        os.kill(server.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.warns(lazyfx.FallbackWarning, match="UNAVAILABLE"):
        train_through(server.address, Net(width=34))
    killer.join()
    assert only_fallback()[0] == "UNAVAILABLE"


def as_of_another_torch(info: pb.GetServerInfoResponse) -> None:
    for target in (info.native, *info.native_targets):
        target.torch = "2.99.0"


def test_a_server_of_another_version(native_server: Any) -> None:
    with relayed(native_server.address) as (relay, address):
        relay.edit_info = as_of_another_torch
        with pytest.warns(lazyfx.FallbackWarning, match=r"torch is 2\.99\.0 on the server"):
            train_through(address, Net())
    assert only_fallback()[0] == "IncompatibleError"


def test_an_artifact_damaged_on_the_way_is_not_opened(native_server: Any) -> None:
    options = {"address": native_server.address, "on_error": "raise"}
    torch.compile(Net(), backend="lazyfx", options=options)(batches()[0])  # now it is there

    def damage(request: Any, data: bytes, trailer: Any) -> tuple[bytes, Any]:
        return data[:1000] + b"?" + data[1001:], trailer

    def replace(request: Any, data: bytes, trailer: Any) -> tuple[bytes, Any]:
        data = data[:1000] + b"?" + data[1001:]
        trailer.digest.sha256 = hashlib.sha256(data).digest()
        return data, trailer

    for edit, kind in ((damage, "ArtifactError"), (replace, "UntrustedArtifactError")):
        torch._dynamo.reset()
        lazyfx.backend.reset_backend_report()
        with relayed(native_server.address) as (relay, address):
            relay.edit = edit
            with pytest.warns(lazyfx.FallbackWarning, match="could not help"):
                train_through(address, Net())
        assert only_fallback()[0] == kind


@torch.library.custom_op("lazyfx_tests::only_here", mutates_args=())
def only_here(x: torch.Tensor) -> torch.Tensor:
    return x * 2


only_here.register_fake(lambda x: torch.empty_like(x))
only_here.register_autograd(lambda ctx, grad: grad * 2)


class WithUnknownOp(Net):
    """Calls an operator that no server has."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return only_here(super().forward(x))


def test_an_operator_that_the_server_does_not_have(native_server: Any) -> None:
    with pytest.warns(lazyfx.FallbackWarning, match="only_here"):
        train_through(native_server.address, WithUnknownOp())
    assert only_fallback()[1].graphs[0].outcome == "eager"


def test_a_report_of_no_graph_says_where_to_look() -> None:
    text = str(lazyfx.BackendReport((), {}))
    assert text.startswith("0 graphs, 0 remote\n")
    assert "TORCH_LOGS=graph_breaks" in text
    assert "before DistributedDataParallel wraps it" in text
