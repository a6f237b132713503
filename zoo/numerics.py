"""Run every pass over the zoo, and compare a step before and after it.

    python -m zoo.numerics [NAME ...] [--ways export,train,aot] [--passes decompose,...]
                           [--json FILE] [--write docs/FILE]

Each architecture is captured in several ways, with the model in evaluation and in training.
Each pass runs alone over each graph, as a worker has it; then results, gradients, and what the
step wrote to inputs, parameters and buffers are compared with those of the graph before it.
Findings that are already in the file of --json are not run again, so that an interrupted run can
resume. Exits with 1 when a pass raised, generated code, or changed what a graph computes.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils._pytree import tree_leaves

import zoo
from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx_server.lazy import RecompileLedger
from zoo import captures
from zoo.architecture import Architecture
from zoo.captures import Capture, Example
from zoo.numerics_table import Finding, markdown
from zoo.steps import Left, Subject, difference, step, subject
from zoo.suite import SUITE, Task, names_for, task


def train(model: nn.Module, example: Example) -> list[Capture]:
    """Dynamo's graphs of the model in training: dropout drawn, statistics updated."""
    model.train()
    try:
        return captures.dynamo(model, example)
    finally:
        model.eval()


def written_out(model: nn.Module, example: Example) -> list[Capture]:
    """Eager attention: exported in evaluation mode, dynamo's graphs in training mode."""
    given = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        return [*captures.export(model, example), *train(model, example)]
    finally:
        model.set_attn_implementation(given)


WAYS: dict[str, Callable[[nn.Module, Example], list[Capture]]] = {
    "export": captures.export,
    "dynamo": captures.dynamo,
    "train": train,
    "aot": captures.aot,
    "eager": written_out,
}


def findings(
    architecture: Architecture, way: str, names: Collection[str] | None = None
) -> list[Finding]:
    """Passes of the suite over every graph of one capture.

    Runs that exceed the tolerance are repeated in float64, and that result counts: with batch
        statistics of two values, as in small models, rounding is unbounded.

    Args:
        architecture: What is captured.
        way: How.
        names: Names in the suite; by default all that suit the capture.

    Returns:
        One finding "no capture", without the name of a pass, for each failed capture and each graph
        that the wire refuses.
    """
    made = _findings(architecture, way, names, torch.float32)
    far = {each.name for each in made if each.outcome == "wrong" and 0 < each.difference < 1e300}
    if not far:
        return made
    again = {
        (each.graph, each.name): each
        for each in _findings(architecture, way, sorted(far), torch.float64)
    }
    return [
        again.get((each.graph, each.name), each) if each.outcome == "wrong" else each
        for each in made
    ]


def _findings(
    architecture: Architecture, way: str, names: Collection[str] | None, dtype: torch.dtype
) -> list[Finding]:
    model, example = architecture.build()
    if dtype != torch.float32:
        model = model.to(dtype)
        example = {k: v.to(dtype) if v.is_floating_point() else v for k, v in example.items()}
    try:
        found = WAYS[way](model, example)
    except Exception as error:  # noqa: BLE001 - captures raise what they like
        return [Finding(architecture.name, way, "", "", "no capture", note=_one_line(error))]
    made = []
    for capture in found:
        try:
            bench = _Bench(capture)
        except UnsupportedGraphError as error:
            note = f"the wire refuses {capture.label}: {_one_line(error)}"
            made.append(Finding(architecture.name, way, "", "", "no capture", note=note))
            continue
        for name in names_for(way) if names is None else names:
            wanted = task(name, capture)
            if wanted is not None:
                outcome, off, note = bench.run(wanted)
                made.append(
                    Finding(architecture.name, way, capture.label, name, outcome, off, note)
                )
    return made


class _Bench:
    """One graph, its step, and the runs over it; shared parts are computed once.

    Raises:
        UnsupportedGraphError: The wire refuses the graph.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._encoded = wire.encode(capture.module)
        self._fresh: Subject | None = None
        first = self._subject()
        # Without tensor attributes, a graph is just its body: equal bodies have equal results.
        self._has_tensors = bool(first.tensors)
        self._expected = self._step(first)
        self._left: dict[bytes, Left] = {}

    def run(self, wanted: Task) -> tuple[str, float, str]:
        """The outcome of one run, the largest difference, and its location or a note."""
        ledger = RecompileLedger()
        given = self._subject()
        self._fresh = None
        try:
            outcome = wanted.pipeline.run(given.module, ledger, rewrites=wanted.rewrites)
            outcome.module.graph.lint()
            after = wire.encode(outcome.module)
        except Exception as error:  # noqa: BLE001 - what a pass raises is what is looked for
            return "wrong", 0.0, f"{type(error).__name__}: {_one_line(error)}"
        if ledger.performed():
            return "wrong", 0.0, "it generated code"
        note = "; ".join(run.note for run in outcome.runs if run.note.startswith("skipped"))
        if not any(run.changed for run in outcome.runs):
            if after.body != self._encoded.body:
                return "wrong", 0.0, "it changed the graph without reporting a change"
            self._fresh = given
            return ("skipped" if note else "same"), 0.0, note
        try:
            found = self._step_after(Subject(outcome.module, given.tensors), after)
        except Exception as error:  # noqa: BLE001 - it ran before the pass
            return "wrong", 0.0, f"does not run: {type(error).__name__}: {_one_line(error)}"
        off, where = difference(self._expected, found, gradients=wanted.gradients)
        return ("changed" if off <= wanted.allowed else "wrong"), off, where

    def _subject(self) -> Subject:
        """The graph as a worker has it; the last one again, if nothing happened to it."""
        return self._fresh or subject(self._encoded)

    def _step_after(self, given: Subject, after: wire.EncodedGraph) -> Left:
        if self._has_tensors or any(map(len, after.attributes)):
            return self._step(given)
        if after.body not in self._left:
            self._left[after.body] = self._step(given)
        return self._left[after.body]

    def _step(self, given: Subject) -> Left:
        capture = self._capture
        arguments = tree_leaves((capture.args, dict(capture.kwargs)))
        return step(given.module, arguments, given.tensors, train=capture.differentiable)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 if every pass preserved the results of every graph."""
    parser = argparse.ArgumentParser(prog="python -m zoo.numerics", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all by default")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--passes", help="names in the suite, separated by commas")
    parser.add_argument("--json", type=Path, help="append the findings to this file, one per line")
    parser.add_argument("--write", type=Path, help="write the table as Markdown, from --json")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    gc.freeze()
    console = Console(stderr=True)
    every = _read(options.json) if options.json and options.json.exists() else []
    for name in options.names or zoo.ARCHITECTURES:
        for way in options.ways.split(","):
            missing = _missing(every, name, way, options.passes)
            if not missing:
                continue
            made = findings(zoo.ARCHITECTURES[name], way, missing)
            every += made
            _say(console, name, way, made)
            if options.json:
                _append(options.json, made)
    if options.write:
        options.write.write_text(markdown(every))
    wrong = sum(each.outcome == "wrong" for each in every)
    console.print(f"{wrong} findings are wrong")
    return 1 if wrong else 0


def _missing(every: Sequence[Finding], name: str, way: str, passes: str | None) -> list[str]:
    """Names in the suite that have not been run over a capture yet."""
    here = [each for each in every if (each.model, each.way) == (name, way)]
    known = {each.name for each in here}
    if known == {""}:  # torch cannot capture it, or the wire refuses all of its graphs
        return []
    wanted = passes.split(",") if passes else SUITE
    return [each for each in names_for(way) if each in wanted and each not in known]


def _say(console: Console, name: str, way: str, made: Sequence[Finding]) -> None:
    changed = sum(each.outcome == "changed" for each in made)
    graphs = len({each.graph for each in made})
    console.print(f"{name} {way}: {graphs} graphs, {changed} changed", highlight=False)
    for each in made:
        if each.outcome in {"wrong", "no capture"}:
            line = (
                f"  {each.outcome}: {each.name} on {each.graph}: {each.difference:.3g} {each.note}"
            )
            console.print(line, highlight=False, soft_wrap=True, markup=False)


def _append(file: Path, made: Sequence[Finding]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(asdict(each)) + "\n" for each in made)


def _read(file: Path) -> list[Finding]:
    """The findings in a file; of two about the same graph and pass, the later one."""
    latest: dict[tuple[Any, ...], Finding] = {}
    for line in file.read_text().splitlines():
        each = Finding(**json.loads(line))
        said = "" if each.name else each.note
        latest[(each.model, each.way, each.graph, each.name, said)] = each
    return list(latest.values())


if __name__ == "__main__":
    sys.exit(main())
