"""Changed BERTs compile exactly the kernels that nobody has compiled, and train as if all were new."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import models
import pytest
import torch
from servers import start_server
from torch import nn
from training.counting import CountedCompilers

from bench.process_cpu import tree_seconds
from lazyfx.backend import remote
from lazyfx.v1 import compiler_pb2 as pb

pytestmark = pytest.mark.slow

Gradients = dict[str, torch.Tensor]


class Classifier(nn.Module):
    """BERT with a head."""

    def __init__(
        self, layers: int = 2, epsilon: float = 1e-12, head: Callable[[], nn.Module] | None = None
    ) -> None:
        super().__init__()
        self.body, _ = models.bert(layers=layers, width=64)
        for module in self.body.modules():
            if isinstance(module, nn.LayerNorm):
                module.eps = epsilon
        self.head = nn.Linear(64, 3) if head is None else head()

    def forward(self, **inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(**inputs)[0])


def two_layers() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 7), nn.LogSoftmax(-1))


CHANGES: dict[str, dict[str, Any]] = {
    "a literal": {"epsilon": 1e-6},
    "twice the layers": {"layers": 4},
    "another head": {"head": two_layers},
}


def gradients(changes: dict[str, Any], backend: str, options: dict[str, Any] | None) -> Gradients:
    """Those of one step."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = Classifier(**changes).train()
    _, example = models.bert(layers=1, width=64)
    torch.manual_seed(1)  # for dropout
    compiled = torch.compile(model, backend=backend, options=options)
    compiled(**example).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Threads add up the gradient of an embedding in the order in which they come.

    So it has other last bits in each run, also of one and the same compiled kernel.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
def test_a_changed_bert_compiles_only_kernels_that_are_new(
    tmp_path: Path, compilers: CountedCompilers, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[set[bytes]] = []
    load = remote.load

    def noting(bundle: pb.NativeBundle, *arguments: Any) -> Any:
        used.append({kernel.source for kernel in bundle.kernels})
        return load(bundle, *arguments)

    monkeypatch.setattr(remote, "load", noting)
    server = start_server(
        tmp_path / "store", "--native", "--workers", "1", environment=compilers.environment
    )
    options = {"address": server.address, "on_error": "raise"}
    seen: set[bytes] = set()
    cold = 0.0
    try:
        for number, (name, change) in enumerate({"first": {}, **CHANGES}.items()):
            runs, cpu, began = compilers.runs(), tree_seconds(server.pid), time.monotonic()
            ours = gradients(change, "lazyfx", options)
            spent, wall = tree_seconds(server.pid) - cpu, time.monotonic() - began
            runs = compilers.runs() - runs
            (sources,) = used
            used.clear()
            new = sources - seen
            seen |= sources
            cold = cold or spent
            sys.stderr.write(
                f"{name}: {len(sources)} kernels, {len(new)} new, {runs} runs of g++; server "
                f"{spent:.1f} CPU s ({spent / cold:.2f} of the first), {wall:.1f} s\n"
            )
            headers = runs - len(new)
            assert headers == 0 or (number == 0 and headers == 1), name
            monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / f"cold{number}"))
            theirs = gradients(change, "inductor", None)
            assert ours.keys() == theirs.keys()
            different = [each for each in ours if not torch.equal(ours[each], theirs[each])]
            assert not different, name
    finally:
        server.stop()
