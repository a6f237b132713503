"""Laziness: a pipeline on plain modules, under torch's own lazy flag, and as the service runs it.

`python -m bench.lazy [--quick] [--json FILE] [--models bert,gpt2]`. Each round runs the ways on
the same graph, in turns, and compares them within the round. The passes are the service's own,
which request a recompile only if they changed something; torch's CSEPass, which returns a plain
module; and thirty pattern rewrites: by torch's replace_pattern (plain, flag, and lazy: on lazy
modules), or by the pass of the service (ours), which has decoded these patterns before, as a worker
has after the first request with them.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import platform
import statistics
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from time import process_time
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import models
import torch
from rich.console import Console
from torch.fx import Graph, GraphModule, symbolic_trace
from torch.fx._lazy_graph_module import _make_graph_module, _use_lazy_graph_module
from torch.fx.passes.dialect.common.cse_pass import CSEPass
from torch.fx.subgraph_rewriter import replace_pattern
from wire import captures
from wire.captures import Capture

from bench.lazy_table import Result, summary, table
from bench.rewrites import Aten, Torch, rewrites
from lazyfx.shared import pass_specs
from lazyfx.shared.pass_specs import messages, normalize
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.lazy import RecompileLedger, lazy_job, make_lazy
from lazyfx_server.passes import PassContext, Registry
from lazyfx_server.passes.rewrites import RewriteReader

MODELS: Mapping[str, dict[str, int]] = {
    "bert": {"layers": 12},
    "gpt2": {"layers": 12},
    "llama": {"layers": 16},
    "t5": {"layers": 6},
    "resnet50": {},
}
Work = Callable[[GraphModule], GraphModule]


def main() -> None:
    """Measure, and print the results."""
    parser = argparse.ArgumentParser(prog="python -m bench.lazy", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds instead of seven")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="also write the numbers to this file"
    )
    parser.add_argument(
        "--models", default=",".join(MODELS), help="only these models, e.g. bert,gpt2"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    results = []
    for name in options.models.split(","):
        for capture in _captures(name):
            results.append(measure(f"{name} {capture.label}", capture.module, _rounds(options)))
            _say(results[-1])
    console = Console(width=None if Console().is_terminal else 130)
    console.print(table(results))
    console.print(*summary(results), sep="\n", highlight=False)
    if options.json:
        facts = {"torch": version("torch"), "python": platform.python_version()}
        rows = [asdict(result) for result in results]
        options.json.write_text(json.dumps({**facts, "rows": rows}, indent=1) + "\n")


def measure(label: str, module: GraphModule, rounds: int) -> Result:
    """The ways on one graph, in turns; a different one begins each round."""
    pipeline = _Pipeline(_patterns(module), _can_merge(module))
    ways: dict[str, Callable[[], float]] = {
        "plain": lambda: _plain(module, pipeline),
        "flag": lambda: _flag(module, pipeline),
        "lazy": lambda: _ours(module, pipeline.run)[0],
        "ours": lambda: _ours(module, pipeline.run_as_service)[0],
    }
    samples: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm caches
    names = list(ways)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            samples[name].append(ways[name]())
    with _counting() as plain_done:
        _plain(module, pipeline)
    with _counting() as flag_done:
        _flag(module, pipeline)
    _, ledger = _ours(module, pipeline.run_as_service)
    changed = pipeline.with_cse and CSEPass()(_decoded(module)).modified
    return Result(
        graph=label,
        nodes=len(module.graph.nodes),
        cse_changed=bool(changed),
        plain=samples["plain"],
        flag=samples["flag"],
        lazy=samples["lazy"],
        ours=samples["ours"],
        asked=ledger.requested(),
        done=ledger.performed(),
        plain_done=plain_done[0],
        flag_done=flag_done[0],
    )


Patterns = Sequence[tuple[Graph, Graph]]
_PASS = "replace_pattern"


@dataclass(frozen=True)
class _Pipeline:
    """The passes: the service's own, torch's CSEPass where it works, and thirty patterns."""

    patterns: Patterns
    with_cse: bool

    def run(self, module: GraphModule, again: Work) -> None:
        """Run it; `again` does what the driver does with the result of each pass."""
        module = self._before(module, again)
        for pattern, replacement in self.patterns:
            # Created by torch's own constructor, which the flag affects too.
            sides = [_make_graph_module(torch.nn.Module(), side) for side in (pattern, replacement)]
            replace_pattern(module, sides[0], sides[1])
            module = again(module)
        self._after(module, again)

    def run_as_service(self, module: GraphModule, again: Work) -> None:
        """The same with the service's pass for the patterns, read from a request."""
        module = self._before(module, again)
        rewriting = _REGISTRY.create(_PASS)
        rewrites = _READER.read(self._messages, [rewriting])[0]
        module = again(rewriting.run(module, PassContext(rewrites)).module)
        self._after(module, again)

    def _before(self, module: GraphModule, again: Work) -> GraphModule:
        context = PassContext()
        for name in ("remove_dropout", "dead_code_elimination"):
            module = again(_REGISTRY.create(name).run(module, context).module)
        if self.with_cse:
            module = again(CSEPass()(module).graph_module)
        return again(_REGISTRY.create("constant_fold").run(module, context).module)

    def _after(self, module: GraphModule, again: Work) -> None:
        for name in ("dead_code_elimination", "shape_propagation"):
            module = again(_REGISTRY.create(name).run(module, PassContext()).module)

    @cached_property
    def _messages(self) -> list[pb.PassSpec]:
        pairs = [tuple(GraphModule(torch.nn.Module(), g) for g in pair) for pair in self.patterns]
        return messages(normalize([pass_specs.replace_pattern(*pairs)]))


_READER = RewriteReader()
_REGISTRY = Registry()


def _plain(module: GraphModule, pipeline: _Pipeline) -> float:
    copied = _decoded(module)
    started = process_time()
    pipeline.run(copied, lambda m: m)
    return process_time() - started


def _flag(module: GraphModule, pipeline: _Pipeline) -> float:
    with _use_lazy_graph_module(True):
        copied = _decoded(module, lazily=True)
        started = process_time()
        pipeline.run(copied, lambda m: m)
        return process_time() - started


def _ours(
    module: GraphModule, run: Callable[[GraphModule, Work], None]
) -> tuple[float, RecompileLedger]:
    ledger = RecompileLedger()
    with lazy_job(ledger):
        copied = make_lazy(_decoded(module), ledger)
        started = process_time()
        run(copied, lambda m: make_lazy(m, ledger))
        seconds = process_time() - started
    return seconds, ledger


def _decoded(module: GraphModule, *, lazily: bool = False) -> GraphModule:
    """A copy of the graph around the same attributes; with the lazy flag a lazy one."""
    graph = Graph(tracer_cls=None)
    result = graph.graph_copy(module.graph, {})
    graph.output(result)
    for old, new in zip(module.graph.nodes, graph.nodes, strict=True):
        new.meta = copy.copy(old.meta)
    if not lazily:
        return GraphModule(module, graph)
    return _make_graph_module(module, graph)


def _can_merge(module: GraphModule) -> bool:
    """Whether CSEPass can process the graph: it raises on slices before Python 3.12."""
    try:
        CSEPass()(_decoded(module))
    except Exception:  # noqa: BLE001 - whatever it raises, it cannot be part of the pipeline
        return False
    return True


def _patterns(module: GraphModule) -> Patterns:
    aten = any("aten" in str(node.target) for node in module.graph.nodes)
    pairs = rewrites(Aten() if aten else Torch(), 2, 8, 32, 8)
    traced = [[symbolic_trace(side).graph for side in pair] for pair in pairs]
    return [(pattern, replacement) for pattern, replacement in traced]


def _captures(name: str) -> Iterator[Capture]:
    model, example = getattr(models, name)(**MODELS[name])
    yield from captures.exported(model, example)
    try:
        with torch.no_grad():
            exported = torch.export.export(model, (), kwargs=example, strict=False)
            program = exported.run_decompositions()
        yield Capture("decomposed", program.module(check_guards=False), (), example)
    except ValueError as error:  # fused attention returns other strides than its decomposition
        print(f"{name} decomposed: torch cannot: {str(error)[:80]}", file=sys.stderr)
    yield from captures.dynamo(model, example)
    yield from captures.aot(model, example)
    if name == "resnet50":
        yield from captures.symbolic(model, example)


@contextmanager
def _counting() -> Iterator[list[int]]:
    """Counts generations of Python code in the block, except for copies of the graph."""
    original = GraphModule.recompile
    count = [0]

    def recompile(self: GraphModule) -> Any:
        count[0] += "_code" in self.__dict__ or len(self._graph.nodes) < 64
        return original(self)

    GraphModule.recompile = recompile  # type: ignore[method-assign, assignment]
    try:
        yield count
    finally:
        GraphModule.recompile = original  # type: ignore[method-assign]


def _rounds(options: argparse.Namespace) -> int:
    return 3 if options.quick else 7


def _say(result: Result) -> None:
    middle = [statistics.median(each) * 1e3 for each in result.samples]
    line = (
        f"{result.graph}: {result.nodes} nodes, plain {middle[0]:.0f} flag {middle[1]:.0f} "
        f"lazy {middle[2]:.0f} ours {middle[3]:.0f} ms; {result.against_plain:.2f}x and "
        f"{result.against_flag:.2f}x; "
        f"done {result.plain_done}, {result.flag_done}, {result.done} of {result.asked}; "
        f"CSE {'changed it' if result.cse_changed else 'no change'}"
    )
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
