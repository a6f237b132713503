"""`lazyfx demo`: the main use case, end to end, on a temporary server."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer
from rich.console import Console

import lazyfx
from lazyfx.cli.failing import reporting_errors
from lazyfx.cli.local_server import LocalServer, local_server
from lazyfx.cli.metrics_text import changed_lines, read_metrics
from lazyfx.cli.report_tables import console, pass_table, seconds_text, summary_table
from lazyfx.errors import LazyfxError

if TYPE_CHECKING:
    from lazyfx.cli.demo_model import DemoModel

Answer = TypeVar("Answer")

_SHOWN_CODE_LINES = 16
_SHOWN_COLUMNS = 110
# Allows another order of float32 sums; logits of random weights are around 1.
_TOLERANCE = 1e-3


def demo(
    layers: Annotated[int, typer.Option("--layers", min=1, hidden=True)] = 12,
    width: Annotated[int, typer.Option("--width", min=64, hidden=True)] = 768,
) -> None:
    """Compile GPT-2 on a temporary server.

    All 12 layers, with random weights: nothing is downloaded. The server uses free local ports
    and a temporary store, and stops when the demo ends.
    """
    if width % 64:
        raise typer.BadParameter("must be a multiple of 64", param_hint="--width")
    out = console()
    began = time.perf_counter()
    with reporting_errors("the demo's server"), _terminated_gracefully():
        with local_server() as server:
            # This imports torch, which is slow; --help does not need it.
            from lazyfx.cli.demo_model import capture_gpt2

            _say(out, "1", f"a server on {server.address}, metrics on {server.metrics_url}")
            model, seconds = _timed(lambda: capture_gpt2(layers, width))
            nodes = len(model.program.graph.nodes)
            _say(
                out,
                "2",
                f"GPT-2 captured by torch.export: {layers} layers, "
                f"{model.parameters / 1e6:.0f} million parameters, {nodes} nodes, "
                f"{seconds_text(seconds)}",
            )
            sent = _UploadCounter()
            with lazyfx.connect(server.address, on_upload=sent) as client:
                _compile(out, client, server, model, sent)
        _say(out, "8", f"the server has stopped; {time.perf_counter() - began:.0f} s in total")


@dataclass
class _UploadCounter:
    """Counts the tensor bytes sent to the server."""

    count: int = 0

    def __call__(self, sent: int, total: int) -> None:
        if sent == total:
            self.count += total


def _compile(
    out: Console, client: lazyfx.Client, server: LocalServer, model: DemoModel, sent: _UploadCounter
) -> None:
    import torch

    from lazyfx.cli.demo_model import demo_passes

    passes = demo_passes({description.name for description in client.passes()})
    metrics = read_metrics(server.metrics_url)

    remote, seconds = _timed(lambda: client.compile(model.program, passes))
    _say(
        out,
        "3",
        f"compiled remotely in {seconds_text(seconds)}; {sent.count} bytes of weights were sent",
    )
    out.print(summary_table(remote.report, remote.cache, remote.key))
    out.print(pass_table(remote.report))

    code, seconds = _timed(lambda: remote.code)
    lines = code.strip().splitlines()
    _say(out, "4", f".code read: {len(lines)} lines in {seconds_text(seconds)}; it begins")
    for line in lines[:_SHOWN_CODE_LINES]:
        out.print("    " + line[:_SHOWN_COLUMNS], markup=False, no_wrap=True, overflow="ellipsis")

    with torch.no_grad():
        expected = model.local(input_ids=model.input_ids).logits
        answer, seconds = _timed(lambda: remote(input_ids=model.input_ids))
        difference = (answer.logits - expected).abs().max().item()
    if not difference <= _TOLERANCE:
        raise LazyfxError(f"the outputs differ by {difference:.3g} from those of the local model")
    _say(
        out,
        "5",
        f"called with {model.input_ids.shape[1]} tokens in {seconds_text(seconds)}: largest "
        f"absolute difference from the local model {difference:.3g}",
    )

    again, seconds = _timed(lambda: client.compile(model.program, passes))
    _say(out, "6", f"compiled again: {again.cache.status} in {seconds_text(seconds)}")

    recompiles = remote.report.recompiles
    _say(
        out,
        "7",
        f"recompiles: {recompiles.requested} requested, {recompiles.performed} performed, "
        f"{recompiles.saved} saved; {server.metrics_url} changed by",
    )
    for line in changed_lines(metrics, read_metrics(server.metrics_url), "lazyfx_"):
        out.print("    " + line, markup=False, soft_wrap=True)


def _say(out: Console, step: str, text: str) -> None:
    out.print()
    out.print(f"[bold]{step}.[/bold] ", end="")
    out.print(text, markup=False, soft_wrap=True)


def _timed(work: Callable[[], Answer]) -> tuple[Answer, float]:
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


@contextmanager
def _terminated_gracefully() -> Iterator[None]:
    """Make SIGTERM unwind the stack, so that the server is stopped and its store removed."""

    def leave(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
