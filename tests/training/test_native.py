"""Inductor on the server: the same numbers as here, one compile, no compiler on the client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from harness import metrics, total
from training.counting import native_compiles, run_with_logging_compiler
from training.loops import Net, assert_same, batches, train

import lazyfx


def remote_options(server: Any, **more: object) -> dict[str, object]:
    return {"address": server.address, "on_error": "raise", **more}


PROGRAM = """
import torch
from training.loops import Net, batches, train
import lazyfx
model = Net(width=20)
train(model, batches(), torch.compile(model, backend="lazyfx"))
print(lazyfx.backend_report())
"""


def test_training_equals_local_inductor_and_the_next_process_compiles_nothing(
    native_server: Any, tmp_path: Path
) -> None:
    before = native_compiles(native_server)
    model = Net(width=20)
    compiled = torch.compile(model, backend="lazyfx", options=remote_options(native_server))
    remote = train(model, batches(), compiled)
    assert native_compiles(native_server) == before + 1
    assert lazyfx.backend_report().graphs[0].outcome == "remote"

    loss = compiled(batches()[0]).square().mean()
    first = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True)
    again = torch.autograd.grad(loss, list(model.parameters()))
    assert all(map(torch.equal, first, again)), "a graph that is kept can be gone through again"

    torch._dynamo.reset()
    model = Net(width=20)
    local = train(model, batches(), torch.compile(model, backend="inductor"))
    for ours, theirs in zip(remote.gradients, local.gradients, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same(remote, local)

    printed, compilers = run_with_logging_compiler(
        PROGRAM, tmp_path, LAZYFX_ADDRESS=native_server.address
    )
    assert "1 graph, 1 remote" in printed
    assert "(hit)" in printed
    assert compilers == []
    assert native_compiles(native_server) == before + 1


@pytest.mark.slow
def test_workers_that_are_not_forked_compile_too(launch: Any, needs_gxx: None) -> None:
    """As on a host with GPUs, which a process that was forked cannot use."""
    server = launch("--native", "--native-start-method", "spawn", "--workers", "1")
    model = Net(width=21)
    compiled = torch.compile(model, backend="lazyfx", options=remote_options(server))
    remote = train(model, batches(), compiled)
    assert lazyfx.backend_report().graphs[0].outcome == "remote"
    assert native_compiles(server) == 1
    assert_same(remote, train(Net(width=21), batches()))


def test_guards_of_the_servers_compile_hold_on_the_client(native_server: Any) -> None:
    """Inductor assumes that a batch norm's batch is small; a larger one is compiled again."""
    model = Net()
    compiled = torch.compile(model, backend="lazyfx", options=remote_options(native_server))
    inputs = batches((6, 9, 5000))
    for x in inputs:
        torch._dynamo.mark_dynamic(x, 0)
    remote = train(model, inputs, compiled)
    assert [graph.outcome for graph in lazyfx.backend_report().graphs] == ["remote", "remote"]
    assert_same(remote, train(Net(), inputs))


def test_sizes_that_depend_on_values_and_operators_that_dynamo_writes(native_server: Any) -> None:
    def found(x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = x.clone().addcmul_(x, x, value=0.5)  # a fused multiply-add in dynamo's graph
        return y, y[y > 1].cumsum(0), y.nonzero()

    x = torch.linspace(-1, 2, 9)
    compiled = torch.compile(found, backend="lazyfx", options=remote_options(native_server))
    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        results = compiled(x)
    assert [graph.outcome for graph in lazyfx.backend_report().graphs] == ["remote"]
    torch.testing.assert_close(results, found(x))


def test_grad_mode_and_autocast_do_not_share_artifacts(native_server: Any) -> None:
    model = Net(width=24)
    compiled = torch.compile(model, backend="lazyfx", options=remote_options(native_server))
    x = batches()[0]
    before = native_compiles(native_server)
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), Net(width=24)(x))
    assert compiled(x).grad_fn is not None
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = compiled(x)
    assert half.dtype is torch.bfloat16
    assert native_compiles(native_server) == before + 3


def test_another_vector_instruction_set_is_seen_before_anything_is_sent(
    native_server: Any, tmp_path: Path
) -> None:
    def compiles() -> float:
        samples = metrics(native_server.metrics_url)
        return total(samples, "lazyfx_requests_total", method="Compile")

    before = compiles()
    printed, _ = run_with_logging_compiler(
        PROGRAM,
        tmp_path,
        LAZYFX_ADDRESS=native_server.address,
        LAZYFX_ON_ERROR="eager",
        ATEN_CPU_CAPABILITY="default",
    )
    assert "the vector instruction set is" in printed
    assert "FallbackWarning" in printed
    assert "1 graph, 0 remote" in printed
    assert compiles() == before


def test_a_server_without_native_workers_says_how_to_get_them(server: Any) -> None:
    options = {"address": server.address, "on_error": "eager"}
    with pytest.warns(lazyfx.FallbackWarning, match="--native"):
        torch.compile(Net(), backend="lazyfx", options=options)(batches()[0])
    assert lazyfx.backend_report().fallbacks == {"IncompatibleError": 1}


def test_a_setting_that_does_not_travel_is_named() -> None:
    options = {"cpp.cxx": "evil", "on_error": "raise"}
    with pytest.raises(Exception, match=r"cpp\.cxx"):
        torch.compile(Net(), backend="lazyfx", options=options)(batches()[0])
