"""No C++ kernel is compiled twice: what the server knows is found, also for other graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import metrics, total
from torch import nn
from training.counting import CountedCompilers
from training.loops import Training, assert_same, train

import lazyfx
from lazyfx.artifacts.kernel_files import kept_kernels, kernel_folder
from lazyfx.backend.sessions import session_for

WIDTH = 36  # no other test's kernels
X = torch.linspace(-1, 1, 6 * WIDTH).view(6, WIDTH)


class Body(nn.Module):
    """A body of equal blocks, and a head."""

    def __init__(self, blocks: int = 2, epsilon: float = 1e-5, head: int = 4) -> None:
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for number in range(blocks):
            norm = nn.LayerNorm(WIDTH, eps=epsilon if number == 0 else 1e-5)
            layers += [nn.Linear(WIDTH, WIDTH), nn.GELU(), norm]
        self.layers = nn.Sequential(*layers, nn.Linear(WIDTH, head), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def trained(server: Any, **model: Any) -> Training:
    """One step of a model whose graph the server has not seen."""
    torch._dynamo.reset()
    made = Body(**model)
    options = {"address": server.address, "on_error": "raise"}
    compiled = torch.compile(made, backend="lazyfx", options=options)
    return train(made, [X], compiled)


def kernels(server: Any, source: str) -> int:
    return int(total(metrics(server.metrics_url), "lazyfx_kernels_total", source=source))


@pytest.mark.long
def test_a_changed_model_compiles_only_kernels_that_nobody_has_compiled(
    native_server: Any, compilers: CountedCompilers
) -> None:
    trained(native_server)
    first = lazyfx.backend_report().graphs[-1].kernels
    assert first is not None
    assert first.compiled > 4
    changes = [{"epsilon": 1e-6}, {"blocks": 4}, {"head": 3}]
    for change in changes:
        runs, found = compilers.runs(), kernels(native_server, "found")
        compiled = kernels(native_server, "compiled")
        remote = trained(native_server, **change)
        graph = lazyfx.backend_report().graphs[-1]
        assert graph.kernels is not None
        assert graph.cache == "miss"
        assert graph.kernels.known == kernels(native_server, "found") - found > 0
        assert graph.kernels.compiled == kernels(native_server, "compiled") - compiled
        assert graph.kernels.compiled == compilers.runs() - runs < first.compiled
        assert str(graph.kernels) in str(lazyfx.backend_report())
    # Its kernels were compiled for three graphs.
    torch._dynamo.reset()
    model = Body(**changes[-1])
    local = train(model, [X], torch.compile(model))
    for ours, theirs in zip(remote.gradients, local.gradients, strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert_same(remote, local)


@pytest.mark.long
def test_kernels_that_are_here_are_not_sent_again(native_server: Any, tmp_path: Path) -> None:
    """An artifact names them by their digests; one that was changed or removed is sent."""

    def sent() -> int:
        return int(
            total(
                metrics(native_server.metrics_url), "lazyfx_artifact_bytes_total", kind="inductor"
            )
        )

    def step() -> tuple[Training, int]:
        before = sent()
        return trained(native_server, blocks=1), sent() - before

    first, whole = step()
    again, named = step()
    assert named < whole - 10_000
    files = sorted((tmp_path / "inductor" / "lazyfx").glob("*/k*.so"))
    assert len(files) > 2
    (own,) = {file.parent for file in files}
    other = replace(session_for(native_server.address).signed, public_key="00" * 32)
    assert not kept_kernels(kernel_folder(other)), "another server must not learn of these"
    content = files[1].read_bytes()
    files[0].unlink()  # this process runs what was in it
    files[0].write_bytes(content)
    changed, sent_twice = step()
    assert sent_twice > whole
    files[2].unlink()
    removed, some = step()
    assert named < some < whole
    own.chmod(0o770)  # now others could put a file in place of one that was compared
    unsafe, all_again = step()
    assert all_again == whole
    for training in (again, changed, removed, unsafe):
        assert_same(training, first)
