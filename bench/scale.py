"""How the wire format scales: graphs of 1,000 to 100,000 nodes.

    python -m bench.scale [--svg FILE] [--json FILE] [--sizes 1000,3000,...]

The graphs are layers of a transformer, repeated; each node has a value. Times are CPU times of the
working thread, as medians of several runs that alternate between the sizes. Memory is the peak of
one run in its own process, minus its start.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx._lazy_graph_module import _LazyGraphModule

from bench.chart import Panel, svg
from lazyfx.shared import wire

SIZES = "1000,3000,10000,30000,100000"
WIDTHS = (256, 512, 768, 1024)


def layers(count: int) -> GraphModule:
    """A graph of about `count` nodes: attention and feed-forward layers in a row."""
    aten = torch.ops.aten
    graph = Graph()
    with FakeTensorMode() as mode:
        made = 0

        def value(node: Any, *shape: int) -> Any:
            nonlocal made
            made += 1
            with mode:
                node.meta["val"] = torch.empty(shape)
            return node

        def call(target: Any, shape: tuple[int, ...], *args: Any) -> Any:
            return value(graph.call_function(target, args), *shape)

        width = WIDTHS[0]
        x = value(graph.placeholder("x"), 128, width)
        weights = {
            w: [value(graph.placeholder(f"w{w}_{i}"), w, w) for i in range(4)] for w in WIDTHS
        }
        number = 0
        while made < count - 8:
            width = WIDTHS[number // 40 % len(WIDTHS)]
            number += 1
            x = call(aten.expand.default, (128, width), x, [128, width])
            query, key, values, out = (
                call(aten.mm.default, (128, width), x, weight) for weight in weights[width]
            )
            swapped = call(aten.permute.default, (width, 128), key, [1, 0])
            scores = call(aten.mm.default, (128, 128), query, swapped)
            scaled = call(aten.mul.Tensor, (128, 128), scores, 0.125)
            soft = call(aten._softmax.default, (128, 128), scaled, -1, False)
            mixed = call(aten.mm.default, (128, width), soft, values)
            gated = call(aten.mul.Tensor, (128, width), mixed, out)
            active = call(aten.relu.default, (128, width), gated)
            x = call(aten.add.Tensor, (128, width), x, active)
    graph.output(x)
    return _LazyGraphModule(torch.nn.Module(), graph)


def cpu_seconds(operation: Callable[[], object]) -> float:
    """CPU seconds of one call."""
    gc.collect()
    begin = time.thread_time()
    kept = operation()
    seconds = time.thread_time() - begin
    del kept
    return seconds


def peak_bytes(operation: Callable[[], object]) -> int:
    """Peak memory of an operation, measured in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = _status("VmRSS")
        kept = operation()
        os.write(writer, str(_status("VmHWM") - before).encode())
        del kept
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as answer:
        found = answer.read()
    os.waitpid(child, 0)
    return max(1, int(found))


def _status(field: str) -> int:
    """A line of this process's /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) * 1024


def measure(sizes: list[int], repeats: int) -> list[dict[str, float]]:
    """One row for each size."""
    rows: list[dict[str, float]] = []
    work: list[tuple[Callable[[], object], Callable[[], object]]] = []
    for size in sizes:
        module = layers(size)
        encoded = wire.encode(module)

        def encode(module: GraphModule = module) -> object:
            return wire.encode(module)

        def decode(encoded: wire.EncodedGraph = encoded) -> object:
            return wire.decode(encoded.body, encoded.presentation, module_class=_LazyGraphModule)

        work.append((encode, decode))
        rows.append({"nodes": encoded.nodes, "body_bytes": len(encoded.body)})
    gc.collect()
    gc.freeze()
    taken: list[tuple[list[float], list[float]]] = [([], []) for _ in sizes]
    for _ in range(repeats):
        for (encode, decode), (encodes, decodes) in zip(work, taken, strict=True):
            encodes.append(cpu_seconds(encode))
            decodes.append(cpu_seconds(decode))
    for row, (encode, decode), (encodes, decodes) in zip(rows, work, taken, strict=True):
        row["encode_seconds"] = statistics.median(encodes)
        row["decode_seconds"] = statistics.median(decodes)
        row["encode_peak_bytes"] = peak_bytes(encode)
        row["decode_peak_bytes"] = peak_bytes(decode)
    return rows


def table(rows: list[dict[str, float]]) -> Table:
    """The rows as a table, with times per 1,000 nodes."""
    result = Table(title="the wire format by size of the graph")
    for heading in (
        "nodes", "body bytes", "encode ms", "per 1,000", "decode ms", "per 1,000",
        "encode peak MB", "decode peak MB",
    ):  # fmt: skip
        result.add_column(heading, justify="right")
    for row in rows:
        thousands = row["nodes"] / 1000
        result.add_row(
            f"{row['nodes']:,.0f}", f"{row['body_bytes']:,.0f}",
            f"{row['encode_seconds'] * 1e3:.1f}", f"{row['encode_seconds'] * 1e3 / thousands:.2f}",
            f"{row['decode_seconds'] * 1e3:.1f}", f"{row['decode_seconds'] * 1e3 / thousands:.2f}",
            f"{row['encode_peak_bytes'] / 1e6:.1f}", f"{row['decode_peak_bytes'] / 1e6:.1f}",
        )  # fmt: skip
    return result


def picture(rows: list[dict[str, float]]) -> str:
    """Time and memory over the number of nodes."""
    panels = [
        Panel("CPU time, ms", "nodes"),
        Panel("peak memory, MB", "nodes"),
    ]
    for panel, unit, scale in ((panels[0], "seconds", 1e3), (panels[1], "peak_bytes", 1e-6)):
        for what in ("encode", "decode"):
            panel.lines[what] = [(row["nodes"], row[f"{what}_{unit}"] * scale) for row in rows]
    return svg(panels, "python -m bench.scale: layers of a transformer, a value on every node")


def main() -> None:
    """Measure, print one table, and write the requested files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--sizes", default=SIZES)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--svg", type=Path)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure([int(size) for size in options.sizes.split(",")], options.repeats)
    Console(width=130).print(table(rows))
    if options.svg:
        options.svg.write_text(picture(rows))
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
