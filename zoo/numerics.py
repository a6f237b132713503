"""Run every pass over the zoo, and compare a step before and after it.

    python -m zoo.numerics [NAME ...] [--ways export,train,aot] [--json FILE] [--write docs/FILE]

Each architecture is captured in several ways, with the model in evaluation and in training.
Each pass runs alone over each graph, as a worker has it; then results, gradients, and what the
step wrote to inputs, parameters and buffers are compared with those of the graph before it.
Exits with 1 when a pass raised, generated code, or changed what a graph computes.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from torch.utils._pytree import tree_leaves

import zoo
from lazyfx import wire
from lazyfx.errors import UnsupportedGraphError
from lazyfx.passes import spec_of
from lazyfx.spelling import parse
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pass, Pipeline, Registry
from lazyfx_server.passes.named import BUILTIN_PIPELINES
from lazyfx_server.passes.requests import pipeline_of
from zoo import captures
from zoo.architecture import Architecture
from zoo.captures import Capture, Example
from zoo.numerics_table import Finding, markdown
from zoo.steps import Left, Subject, difference, step, subject

# Spellings of what runs alone: every built-in pass that needs no graphs of its caller, with
# options that find work in small models, and the pipelines with names.
SUITE: Mapping[str, str] = {
    **{
        name: name
        for name in Registry().names()
        if name not in {"replace_pattern", "partition_min_cut", "split_module"}
    },
    "partition_by_support": 'partition_by_support{supported=["linear","add","matmul","conv2d"]}',
    "quantize_weights": "quantize_weights{min_elements=64}",
    "split_module": "split_module{max_nodes=40}",
    **dict(BUILTIN_PIPELINES),
}
# These make other parameters, or constants of them; there is nothing to compare gradients with.
_NOT_TRAINABLE = {"fuse_conv_bn", "fuse_linear_bn", "quantize_weights", "inference"}
# Rounds on purpose. Statistics of a few values and backwards make any size of that, so it is
# compared in evaluation, by its results.
_ROUNDS = {"convert_dtype"}
# How far a pass may be off, of the largest value; passes that change precision say how far.
_ALLOWED = 1e-3


def train(model: nn.Module, example: Example) -> list[Capture]:
    """Dynamo's graphs of the model in training: dropout drawn, statistics updated."""
    model.train()
    try:
        return captures.dynamo(model, example)
    finally:
        model.eval()


WAYS: dict[str, Callable[[nn.Module, Example], list[Capture]]] = {
    "export": captures.export,
    "dynamo": captures.dynamo,
    "train": train,
    "aot": captures.aot,
}


def findings(
    architecture: Architecture, way: str, suite: Mapping[str, str] = SUITE
) -> list[Finding]:
    """Every pass over every graph of one capture; one finding "no capture" if torch cannot."""
    model, example = architecture.build()
    try:
        found = WAYS[way](model, example)
    except Exception as error:  # noqa: BLE001 - captures raise what they like
        return [Finding(architecture.name, way, "", "", "no capture", note=_one_line(error))]
    made = []
    for capture in found:
        try:
            encoded = wire.encode(capture.module)
        except UnsupportedGraphError as error:
            note = f"the wire refuses {capture.label}: {_one_line(error)}"
            made.append(Finding(architecture.name, way, "", "", "no capture", note=note))
            continue
        expected = _step(subject(encoded), capture)
        for name, spelling in _suite_for(capture, way, suite).items():
            outcome, off, note = _run(encoded, capture, expected, name, spelling)
            made.append(Finding(architecture.name, way, capture.label, name, outcome, off, note))
    return made


def _suite_for(capture: Capture, way: str, suite: Mapping[str, str]) -> Mapping[str, str]:
    """What of the suite suits a graph, and for a joint graph the pass that cuts it."""
    if way in {"train", "aot"}:
        suite = {name: spelling for name, spelling in suite.items() if name not in _ROUNDS}
    if capture.label != "joint" or "dead_code_elimination" not in suite:
        return suite
    primals, tangents = capture.args
    results = len(tree_leaves(capture.module.graph.output_node().args[0]))
    options = f"num_outputs={results - len(primals)},num_tangents={len(tangents)}"
    return {**suite, "partition_min_cut": f"partition_min_cut{{{options}}}"}


def _run(
    encoded: wire.EncodedGraph, capture: Capture, expected: Left, name: str, spelling: str
) -> tuple[str, float, str]:
    pipeline = _pipeline(spelling)
    ledger = RecompileLedger()
    given = subject(encoded)
    try:
        outcome = pipeline.run(given.module, ledger)
        outcome.module.graph.lint()
        wire.encode(outcome.module)
    except Exception as error:  # noqa: BLE001 - what a pass raises is what is looked for
        return "wrong", 0.0, f"{type(error).__name__}: {_one_line(error)}"
    if ledger.performed():
        return "wrong", 0.0, "it generated code"
    note = "; ".join(run.note for run in outcome.runs if run.note.startswith("skipped"))
    if not any(run.changed for run in outcome.runs):
        return ("skipped" if note else "same"), 0.0, note
    try:
        found = _step(Subject(outcome.module, given.tensors), capture)
    except Exception as error:  # noqa: BLE001 - it ran before the pass
        return "wrong", 0.0, f"runs no more: {type(error).__name__}: {_one_line(error)}"
    gradients = name not in (_NOT_TRAINABLE | _ROUNDS)
    off, where = difference(expected, found, gradients=gradients)
    right = off <= max(_ALLOWED, *(_tolerance(p) for p in pipeline.passes))
    return ("changed" if right else "wrong"), off, where


def _tolerance(pass_: Pass) -> float:
    return pass_.tolerance if pass_.tolerance > Pass.tolerance else 0.0


def _pipeline(spelling: str) -> Pipeline:
    return pipeline_of(Registry(), [spec_of(each).message() for each in parse(spelling)])


def _step(given: Subject, capture: Capture) -> Left:
    arguments = tree_leaves((capture.args, dict(capture.kwargs)))
    return step(given.module, arguments, given.tensors, train=capture.differentiable)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]


def main(argv: Sequence[str] | None = None) -> int:
    """Run; 0 when every pass kept what every graph computes."""
    parser = argparse.ArgumentParser(prog="python -m zoo.numerics", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all of them when left out")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--passes", help="some of the suite, separated by commas")
    parser.add_argument("--json", type=Path, help="add the findings to this file, one a line")
    parser.add_argument("--write", type=Path, help="write the table as Markdown, from --json")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    suite = {n: s for n, s in SUITE.items() if not options.passes or n in options.passes.split(",")}
    wrong = 0
    every: list[Finding] = []
    for name in options.names or zoo.ARCHITECTURES:
        for way in options.ways.split(","):
            made = findings(zoo.ARCHITECTURES[name], way, suite)
            every += made
            _say(console, name, way, made)
            wrong += sum(each.outcome == "wrong" for each in made)
            if options.json:
                _append(options.json, made)
    if options.write:
        options.write.write_text(markdown(_read(options.json) if options.json else every))
    console.print(f"{wrong} findings are wrong")
    return 1 if wrong else 0


def _say(console: Console, name: str, way: str, made: Sequence[Finding]) -> None:
    changed = sum(each.outcome == "changed" for each in made)
    graphs = len({each.graph for each in made})
    console.print(f"{name} {way}: {graphs} graphs, {changed} changed", highlight=False)
    for each in made:
        if each.outcome in {"wrong", "no capture"}:
            line = (
                f"  {each.outcome}: {each.name} on {each.graph}: {each.difference:.3g} {each.note}"
            )
            console.print(line, each.note, highlight=False, soft_wrap=True, markup=False)


def _append(file: Path, made: Sequence[Finding]) -> None:
    with file.open("a") as stream:
        stream.writelines(json.dumps(asdict(each)) + "\n" for each in made)


def _read(file: Path) -> list[Finding]:
    """The findings of a file; of two about the same graph and pass the later."""
    latest: dict[tuple[Any, ...], Finding] = {}
    for line in file.read_text().splitlines():
        each = Finding(**json.loads(line))
        latest[(each.model, each.way, each.graph, each.name)] = each
    return list(latest.values())


if __name__ == "__main__":
    sys.exit(main())
