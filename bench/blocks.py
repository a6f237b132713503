"""`python -m bench.blocks`: what it costs to compile equal layers once, and how fast that code is.

For each model and number of layers, a server compiles the graph of an inference step in three ways:
as a whole; with `equal_blocks="once"`; and with layers that the model marks
(`torch.compiler.nested_compile_region`). Each way has a sequence length of its own, so that the
server knows few of its kernels, and its CPU seconds are those of a cold compile without the
precompiled header. Then the code of all three, for one sequence length, runs in turns in this
process, on one thread whose CPU time is measured, so that other work on the machine matters less.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

import lazyfx
from bench.process_cpu import tree_seconds
from bench.rounds import take_turns
from bench.training_server import NativeServer, native_server

_WHOLE, _ONCE, _MARKED = _WAYS = ("whole", "once", "marked")


@dataclass(frozen=True)
class Row:
    """One way of compiling one model.

    Attributes:
        model: Name of the model.
        layers: How many layers it has.
        way: One of `_WAYS`.
        server_cpu: CPU seconds of the server for one compile.
        kernels: C++ kernels of the artifact, and how many of them were compiled for it.
        step_ms: Milliseconds of CPU time of one call, the median.
        ratio: The same divided by that of the whole graph's code, the median of all rounds.
        difference: Largest difference of an output from that of the whole graph's code.
    """

    model: str
    layers: int
    way: str
    server_cpu: float
    kernels: tuple[int, int]
    step_ms: float
    ratio: float
    difference: float


@dataclass(frozen=True)
class Sizes:
    """The sizes of all models."""

    width: int
    heads: int
    batch: int
    length: int


def _gpt2(layers: int, sizes: Sizes) -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers, n_embd=sizes.width, n_head=sizes.heads, vocab_size=1000, n_positions=1024,
        use_cache=False, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def _llama(layers: int, sizes: Sizes) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=sizes.width, num_attention_heads=sizes.heads,
        num_key_value_heads=max(1, sizes.heads // 2), vocab_size=1000, use_cache=False,
        intermediate_size=sizes.width * 8 // 3 // 8 * 8, max_position_embeddings=1024,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


_MODELS: dict[str, Callable[[int, Sizes], nn.Module]] = {"gpt2": _gpt2, "llama": _llama}
_BACKEND = torch._dynamo.lookup_backend("lazyfx")
_LAYERS = ("GPT2Block", "LlamaDecoderLayer")


@contextlib.contextmanager
def _marked(model: nn.Module, way: str) -> Iterator[None]:
    """Within the block, the layers of a model are regions, if that is the way."""
    classes = {type(part) for part in model.modules() if type(part).__name__ in _LAYERS}
    forwards = {cls: cls.forward for cls in classes if way == _MARKED}
    try:
        for cls, forward in forwards.items():
            cls.forward = torch.compiler.nested_compile_region(forward)
        yield
    finally:
        for cls, forward in forwards.items():
            cls.forward = forward


class Bench:
    """Compiles models through a server.

    Args:
        server: A native server whose precompiled header is made.
        sizes: Of all models.
        seconds: For the calls of each model.
    """

    def __init__(self, server: NativeServer, sizes: Sizes, seconds: float) -> None:
        self._server = server
        self._sizes = sizes
        self._seconds = seconds
        self._lengths = iter(range(sizes.length + 1, 1024))

    def warm_up(self) -> None:
        """Have the server make its precompiled header."""
        self._compile(nn.Sequential(nn.Linear(3, 3), nn.Tanh()), torch.ones(1, 3), _WHOLE)

    def measure(self, name: str, layers: int) -> list[Row]:
        """All ways of compiling one model."""
        model = _MODELS[name](layers, self._sizes)
        colds, calls = [], []
        for way in _WAYS:
            colds.append(self._cold(model, way))
            calls.append(self._compile(model, self._ids(self._sizes.length), way)[0])
        whole = calls[0]()
        steps = self._steps(calls)
        return [
            Row(
                name, layers, way, *cold, median(own) * 1000,
                median(a / b for a, b in zip(own, steps[0], strict=True)),
                float((call() - whole).abs().max()),
            )
            for way, cold, call, own in zip(_WAYS, colds, calls, steps, strict=True)
        ]  # fmt: skip

    def _cold(self, model: nn.Module, way: str) -> tuple[float, tuple[int, int]]:
        """Server CPU of a compile for a new length, and kernels: all, compiled."""
        before = tree_seconds(self._server.pid)
        _, kernels = self._compile(model, self._ids(next(self._lengths)), way)
        return tree_seconds(self._server.pid) - before, kernels

    def _ids(self, length: int) -> torch.Tensor:
        return torch.arange(self._sizes.batch * length).reshape(-1, length) % 1000

    def _compile(
        self, model: nn.Module, given: torch.Tensor, way: str
    ) -> tuple[Callable[[], torch.Tensor], tuple[int, int]]:
        """A function that runs the model's code, and the kernels of its artifact."""
        torch.compiler.reset()
        lazyfx.reset_backend_report()
        options = {
            "address": self._server.address,
            "on_error": "raise",
            "timeout": 1800,
            "equal_blocks": "once" if way == _ONCE else "each",
        }
        loaded: list[Callable[..., Any]] = []
        inputs: list[Any] = []

        def backend(module: Any, examples: Any) -> Callable[..., Any]:
            loaded.append(_BACKEND(module, examples, options=options))
            inputs.append(list(examples))
            return loaded[-1]

        with torch.no_grad(), _marked(model, way):
            torch.compile(model, backend=backend, dynamic=False)(given)
        (report,) = lazyfx.backend_report().graphs
        counts = report.kernels
        kernels = (counts.known + counts.compiled, counts.compiled) if counts else (0, 0)
        (call,), (arguments,) = loaded, inputs

        def run() -> torch.Tensor:
            with torch.no_grad():
                result: torch.Tensor = call(*arguments)[0]
            return result

        return run, kernels

    def _steps(self, calls: list[Callable[[], torch.Tensor]]) -> list[list[float]]:
        """CPU seconds of each, by round."""

        def timed(call: Callable[[], torch.Tensor]) -> Callable[[], float]:
            def run() -> float:
                started = time.thread_time()
                call()
                return time.thread_time() - started

            return run

        timers = [timed(call) for call in calls]
        one = sum(timer() + timer() for timer in timers) / 2
        return take_turns(timers, max(5, int(self._seconds / one)), warmup=2)


def _table(rows: list[Row], title: str) -> Table:
    made = Table(title=title, title_justify="left")
    for heading in (
        "model", "layers", "way", "server CPU s", "/ 2 layers", "kernels", "compiled", "step ms",
        "/ whole", "largest difference",
    ):  # fmt: skip
        made.add_column(heading, justify="left" if heading in ("model", "way") else "right")
    for row in rows:
        least = min(r.layers for r in rows if r.model == row.model)
        (base,) = (
            r.server_cpu for r in rows if (r.model, r.layers, r.way) == (row.model, least, row.way)
        )
        made.add_row(
            row.model, str(row.layers), row.way, f"{row.server_cpu:.1f}",
            f"{row.server_cpu / base:.2f}", *map(str, row.kernels), f"{row.step_ms:.3f}",
            f"{row.ratio:.3f}", f"{row.difference:.1e}" if row.difference else "none",
            end_section=row.way == _WAYS[-1],
        )  # fmt: skip
    return made


def main() -> None:
    """Measure, print the table, and optionally write the numbers to a file."""
    parser = argparse.ArgumentParser(prog="python -m bench.blocks", description=__doc__)
    parser.add_argument("--models", default="gpt2,llama", help="models, e.g. gpt2")
    parser.add_argument("--layers", default="2,6,24", help="numbers of layers")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--length", type=int, default=16, help="tokens of a sequence")
    parser.add_argument("--seconds", type=float, default=10, help="for the calls of each model")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the numbers here")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    sizes = Sizes(chosen.width, chosen.heads, chosen.batch, chosen.length)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="lazyfx-bench-") as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{folder}/inductor"
        with native_server(Path(folder) / "store") as server:
            bench = Bench(server, sizes, chosen.seconds)
            bench.warm_up()
            for name in chosen.models.split(","):
                for layers in map(int, chosen.layers.split(",")):
                    rows += bench.measure(name, layers)
                    sys.stderr.writelines(f"bench: {row}\n" for row in rows[-len(_WAYS) :])
    if chosen.json is not None:
        chosen.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    title = f"width {sizes.width}, {sizes.heads} heads, ids ({sizes.batch}, {sizes.length})"
    Console(width=120).print(_table(rows, title))


if __name__ == "__main__":
    main()
