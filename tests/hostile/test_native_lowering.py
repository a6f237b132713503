"""Inductor's own source is accepted by the checks, and hostile text of a graph does not reach it."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.native_lowering import lower
from torch import nn
from torch._inductor import codecache

from lazyfx.backend.dynamo_graphs import flatten
from lazyfx.capture import remembering
from lazyfx.shared.native.native_request import native_request
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.native import making, native_job
from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.toolchain.compiler import find_compiler
from lazyfx_server.v1 import worker_pb2 as worker

MARKER = "zqmarkzq"


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def bodies(function: Callable[..., Any], *inputs: Any, dynamic: bool = False) -> list[bytes]:
    """The graphs of a function as they go to a native worker."""
    found: list[bytes] = []

    def keep(module: torch.fx.GraphModule, example: list[Any]) -> Any:
        found.append(remembering.encode(flatten(module, example).module).body)
        return module.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(specialize_float=True):
        torch.compile(function, backend=keep, dynamic=dynamic)(*inputs)
    return found


class Net(nn.Module):
    """Layers whose kernels differ: convolution, norms, attention, embedding, dropout, scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4), nn.Dropout(0.1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embed(ids).transpose(1, 2))).transpose(1, 2)
        x, _ = self.attention(x, x, x)
        x = torch.zeros_like(x).index_add_(0, torch.arange(x.shape[0]), torch.nan_to_num(x))
        return torch.log_softmax(self.out(x), -1).cumsum(0)


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_inductor_writes_is_taken(dynamic: bool) -> None:
    ids = torch.randint(0, 10, (3, 7))
    for body in bodies(Net(), ids, dynamic=dynamic):
        lowered = lower(body)
        assert lowered.refused == ""
        assert len(lowered.sources) > 4, lowered.said


@pytest.mark.long
def test_what_aot_inductor_writes_is_taken() -> None:
    size = torch.export.Dim("size", min=2, max=100)
    program = torch.export.export(
        Net().eval(), (torch.randint(0, 10, (3, 7)),), dynamic_shapes=({0: size},)
    )
    module = program.module(check_guards=False)
    with torch.no_grad():
        lowered = lower(remembering.encode(module).body, pb.ARTIFACT_KIND_AOT_INDUCTOR)
    assert lowered.refused == ""
    assert len(lowered.sources) >= 2, lowered.said


def asynchronous(x: torch.Tensor) -> torch.Tensor:
    torch._assert_async(x[0, 0] > 0, "positive")
    torch._assert_async(x[0, 1] > 0, "as positive")
    return x + 1


def scalar(x: torch.Tensor) -> torch.Tensor:
    size = int(x[0, 0].item())
    torch.ops.aten._assert_scalar(size > 0, "a size")
    torch.ops.aten._assert_scalar(size < 1000, "another size")
    return x + size


def profiled(x: torch.Tensor) -> torch.Tensor:
    with torch.profiler.record_function("a region"):
        return torch.relu(x) * 2


def words(x: torch.Tensor) -> torch.Tensor:
    y = torch.div(x, 2, rounding_mode="floor") + torch.einsum("ij,ij->i", x, x)[:, None]
    y = nn.functional.gelu(y, approximate="tanh").to("cpu")
    y = nn.functional.pad(y, (1, 1), mode="constant")
    return y.scatter_reduce(0, torch.zeros_like(y, dtype=torch.int64), y, reduce="amax")


def checkpointed(x: torch.Tensor) -> torch.Tensor:
    return torch.utils.checkpoint.checkpoint(asynchronous, x, use_reentrant=False)  # type: ignore[no-any-return]


SEEDS: tuple[Callable[..., Any], ...] = (asynchronous, scalar, profiled, words, checkpointed)


def test_source_that_is_not_inductors_is_an_internal_error_and_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a text did reach Inductor after all, nothing of it would be compiled."""
    monkeypatch.setattr(making, "without_texts", lambda body: body)
    # What a job changes for good in its process, it does not change in this one.
    monkeypatch.setattr(native_job, "redirect_compiles", lambda *_: None)
    monkeypatch.setattr(native_job, "_keep_to", lambda _: None)
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):  # which the job moves, for its process
        monkeypatch.setattr(codecache, name, getattr(codecache, name))
    (body,) = bodies(asynchronous, torch.ones(3, 3))
    changed = graph_pb2.GraphBody.FromString(body)
    for place in range(len(changed.strings)):
        changed.strings[place] = f'"), 0)); asm(".incbin \\"{MARKER}\\""); ((void)("'
    job = worker.Job()
    job.native.kind = pb.ARTIFACT_KIND_INDUCTOR
    job.native.graph.graph.body = changed.SerializeToString()
    job.native.request.CopyFrom(native_request({torch.device("cpu")}, None, {}))
    job.native.progress = str(tmp_path / "progress")
    job.native.cache = str(tmp_path)
    answer = native_job.run_native_job(find_compiler(), Confinement(None), job.SerializeToString())
    result = worker.JobResult.FromString(answer)
    assert result.error.kind == worker.JOB_ERROR_KIND_SOURCE
    assert MARKER not in result.error.message
    assert not [f for f in tmp_path.rglob("*.cpp") if MARKER in f.read_text(errors="replace")]


def hostile_texts() -> list[str]:
    """Texts that break out of strings, comments and lines, each with the marker in it."""
    touch = f"system({MARKER})"
    return [
        MARKER,
        f'"); {touch}; ("',
        f'\\"); {touch}; (\\"',
        f"'+__import__('os').{touch}+'",
        f"'''+{touch}+'''",
        f'"""+{touch}+"""',
        f"*/ {touch} /*",
        f"\n#include <{MARKER}>\n",
        f"\r{touch}",
        f"{MARKER}\\",
        f"{MARKER}\0",
        f"??/\n{touch}",
        f'R"x({MARKER})x"',
        f"%{MARKER}s {{}} {{0}}",
        f"\u2028{touch}\u202e",
        f"{MARKER}" * 500,
        "\u00e9" + MARKER,
        f"'); asm({MARKER}); ('",
        f"{MARKER};",
        f"//{MARKER}",
    ]


def variations(count: int, seed: int) -> Iterator[bytes]:
    """Graphs with hostile text in the place of one, some or all of theirs."""
    chosen = random.Random(seed)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        seeds = [body for function in SEEDS for body in bodies(function, torch.ones(3, 3))]
    texts = hostile_texts()
    for number in range(count):
        body = graph_pb2.GraphBody.FromString(seeds[number % len(seeds)])
        kind = chosen.random()
        if kind < 0.8 and body.strings:
            for place in chosen.sample(range(len(body.strings)), chosen.choice([1, 1, 1, 2])):
                body.strings[place] = chosen.choice(texts)
        elif kind < 0.85:
            chosen.choice(body.targets).name = chosen.choice(texts)
        else:
            row = chosen.choice([row for row in body.calls if row.args])
            argument = row.args.add()
            argument.text = len(body.strings)
            body.strings.append(chosen.choice(texts))
        yield body.SerializeToString()


def fuzz(count: int, seed: int) -> None:
    lowered_at_all = 0
    chosen = random.Random(seed)
    for body in variations(count, seed):
        kind = chosen.choice([pb.ARTIFACT_KIND_INDUCTOR, pb.ARTIFACT_KIND_AOT_INDUCTOR])
        lowered = lower(body, kind)
        assert lowered.refused == ""
        assert not any(MARKER in source for source in lowered.sources)
        lowered_at_all += bool(lowered.sources)
    assert lowered_at_all > count / 4, "most were refused before Inductor wrote anything"


def test_hostile_text_in_every_place_reaches_no_source() -> None:
    fuzz(12, seed=1)


@pytest.mark.slow
def test_hostile_text_in_every_place_reaches_no_source_2000_times() -> None:
    fuzz(2000, seed=2)
