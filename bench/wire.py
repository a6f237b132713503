"""The wire format compared with torch's own serializations of a graph.

    python -m bench.wire [--models gpt2,bert,...] [--repeats N] [--least] [--json FILE]

Each model is exported and decomposed. Formats take turns within a round, so that slow phases of the
machine affect all of them. Times are CPU times of the working thread. The table shows medians and,
behind +-, half the distance between the quartiles; with
--least the quickest call of all, and the ratios of these: on a shared machine, medians include the
neighbours' effect. Python's garbage collector is off. "floor" is the cost of creating the nodes
from objects in memory, see `bench/floor.py`. "body checked before" leaves the check of the
canonical form out of decoding: a server reads a body once, holds it against its rules, and builds
the graph from what it has read.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import json
import os
import pickle
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

import models
import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule
from torch.fx._graph_pickler import GraphPickler, Options
from torch.fx._lazy_graph_module import _LazyGraphModule
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from bench import floor
from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2

SHORTEST_SECONDS = 0.05
FLOOR = "floor, in a loop"
LAYERS = {"gpt2": 12, "bert": 12, "t5": 6, "llama": 16}


@dataclass(frozen=True)
class Format:
    """A serialization of graphs."""

    name: str
    write: Callable[[], bytes] | None
    read: Callable[[bytes], Any]


@dataclass
class Measurement:
    """Seconds of each round, and the size; `error` if the format cannot represent the graph."""

    model: str
    nodes: int
    format: str
    size_bytes: int = 0
    write_seconds: list[float] = field(default_factory=list)
    read_seconds: list[float] = field(default_factory=list)
    error: str = ""


def capture(name: str) -> tuple[torch.export.ExportedProgram, GraphModule]:
    """Export and decompose a model with all its layers, at a small width."""
    layers = {"layers": LAYERS[name]} if name in LAYERS else {}
    model, example = getattr(models, name)(**layers)
    with torch.no_grad():
        program = torch.export.export(model, (), kwargs=example, strict=False)
        program = program.run_decompositions({})
    module = program.graph_module
    # As a compile service sends it: with values, but without stack traces and module paths.
    for node in module.graph.nodes:
        node.meta = {key: value for key, value in node.meta.items() if key == "val"}
    return program, module


def formats(program: torch.export.ExportedProgram, module: GraphModule) -> list[Format]:
    """The formats to compare for one graph."""

    def fake_mode() -> FakeTensorMode:
        return FakeTensorMode(shape_env=ShapeEnv())

    def encode() -> bytes:
        return wire.encode(module).message().SerializeToString()

    def decode(data: bytes) -> GraphModule:
        graph = graph_pb2.Graph.FromString(data)
        return wire.decode(graph.body, graph.presentation, module_class=_LazyGraphModule)

    encoded = wire.encode(module)
    checked = wire.read_canonical(encoded.body)

    def build() -> GraphModule:
        return wire.decode(checked, encoded.presentation, module_class=_LazyGraphModule)

    def materialized(data: bytes) -> GraphModule:
        decoded = decode(data)
        mode = fake_mode()
        for node in decoded.graph.nodes:
            node.meta["val"] = wire.materialize(node, mode)
        return decoded

    def export_save() -> bytes:
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        return buffer.getvalue()

    def plain_pickle() -> bytes:
        module._tracer_cls = None
        return pickle.dumps(module)

    loop, straight, whole = floor.looped(module), floor.straight(module), floor.whole(module)
    public = floor.public(module)
    only_val = Options(node_metadata_key_filter=lambda key: key == "val", ops_filter=None)
    return [
        Format("lazyfx", encode, decode),
        Format("lazyfx, body checked before", None, lambda _: build()),
        Format("lazyfx + fake tensors", encode, materialized),
        Format(
            "GraphPickler, val",
            lambda: GraphPickler.dumps(module, only_val),
            lambda data: GraphPickler.loads(data, fake_mode()),
        ),
        Format("pickle, no values", plain_pickle, pickle.loads),
        Format("torch.export.save", export_save, lambda data: torch.export.load(io.BytesIO(data))),
        Format(FLOOR, None, lambda _: loop()),
        Format("floor, straight-line code", None, lambda _: straight()),
        Format("floor, values and module", None, lambda _: whole()),
        Format("floor, Graph.create_node", None, lambda _: public()),
    ]


def measure(name: str, repeats: int, *, least: bool = False) -> list[Measurement]:
    """Time all formats on one model, in turns; a sample is a round's mean, or its fastest call."""
    program, module = capture(name)
    rows = [(each, Measurement(name, len(module.graph.nodes), each.name))
            for each in formats(program, module)]  # fmt: skip
    # Keep the collector from traversing models and imports again and again.
    gc.collect()
    gc.freeze()
    try:
        for round_number in range(repeats + 1):
            # No format always follows the same one.
            first = round_number % len(rows)
            for each, row in rows[first:] + rows[:first]:
                if not row.error:
                    _time(each, row, min if least else statistics.fmean, keep=round_number > 0)
            gc.collect()
    finally:
        gc.unfreeze()
    return [row for _, row in rows]


def _time(
    each: Format, row: Measurement, summary: Callable[[list[float]], float], *, keep: bool
) -> None:
    try:
        data = each.write() if each.write else b""
        write_seconds = summary(_seconds(each.write)) if each.write else 0.0
        read_seconds = summary(_seconds(lambda: each.read(data)))
    except Exception as error:  # noqa: BLE001 - a peer that cannot do it is a result
        row.error = f"{type(error).__name__}: {error}".splitlines()[0][:60]
        return
    row.size_bytes = len(data)
    if keep:
        row.write_seconds.append(write_seconds)
        row.read_seconds.append(read_seconds)


def _seconds(operation: Callable[[], Any]) -> list[float]:
    """CPU seconds of each call, over enough calls to fill the shortest time worth measuring.

    The garbage collector is off, as in a worker and in `timeit`: graphs are cyclic, and garbage of
    one format would be collected at the cost of the next.
    """
    calls: list[float] = []
    gc.collect()
    gc.disable()
    try:
        begin = end = time.thread_time()
        while end - begin < SHORTEST_SECONDS:
            before = end
            operation()
            end = time.thread_time()
            calls.append(end - before)
    finally:
        gc.enable()
    return calls


def table(rows: list[Measurement], *, least: bool = False) -> Table:
    """The measurements, relative to GraphPickler's and to the floor."""
    kind = "least" if least else "medians of"
    result = Table(
        title=f"wire format ({kind} CPU time; x: times better than GraphPickler with val)"
    )
    rows = [_only_least(row) for row in rows] if least else rows
    for heading in ("model", "nodes", "format"):
        result.add_column(heading)
    for heading in ("bytes", "x", "encode ms", "x", "decode ms", "x", "of floor"):
        result.add_column(heading, justify="right")
    previous = ""
    for row in rows:
        peer = next(r for r in rows if r.model == row.model and r.format == "GraphPickler, val")
        least = next(r for r in rows if r.model == row.model and r.format == FLOOR)
        first = row.model != previous
        previous = row.model
        label = (row.model, str(row.nodes)) if first else ("", "")
        if row.error:
            result.add_row(*label, row.format, row.error, end_section=False)
            continue
        result.add_row(
            *label,
            row.format,
            f"{row.size_bytes:,}" if row.size_bytes else "",
            _ratio(peer.size_bytes, row.size_bytes),
            _spread(row.write_seconds) if row.size_bytes else "",
            _ratios(peer.write_seconds, row.write_seconds) if row.size_bytes else "",
            _spread(row.read_seconds),
            _ratios(peer.read_seconds, row.read_seconds),
            _ratios(row.read_seconds, least.read_seconds, digits=2),
        )
    return result


def _only_least(row: Measurement) -> Measurement:
    """A measurement with only its fastest round."""
    return replace(
        row,
        write_seconds=sorted(row.write_seconds)[:1],
        read_seconds=sorted(row.read_seconds)[:1],
    )


def _median(values: list[float]) -> float:
    return statistics.median(values) if values else 0.0


def _spread(values: list[float]) -> str:
    if len(values) < 2:
        return f"{_median(values) * 1e3:.2f}"
    low, _, high = statistics.quantiles(values, n=4)
    return f"{_median(values) * 1e3:.2f} +-{(high - low) / 2 * 1e3:.2f}"


def _ratios(peer: list[float], own: list[float], digits: int = 1) -> str:
    """The median of the rounds' ratios."""
    pairs = [a / b for a, b in zip(peer, own, strict=False) if a and b]
    return f"{statistics.median(pairs):.{digits}f}" if pairs else ""


def _ratio(peer: float, own: float) -> str:
    return f"{peer / own:.1f}" if peer and own else ""


def main(arguments: list[str] | None = None) -> None:
    """Measure, print one table, and optionally write the numbers to a file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--models", default="gpt2,bert,t5,llama,resnet50")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--least", action="store_true", help="the fastest call, not the median")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    rows: list[Measurement] = []
    for name in options.models.split(","):
        with contextlib.redirect_stderr(io.StringIO()):
            rows += measure(name, max(2, options.repeats), least=options.least)
    Console(width=130).print(table(rows, least=options.least))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
