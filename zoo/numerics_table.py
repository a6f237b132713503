"""The table of passes over the zoo, as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

import torch
import transformers

import zoo


@dataclass(frozen=True)
class Finding:
    """What one pass did to one graph.

    Attributes:
        model: Architecture.
        way: How it was captured.
        graph: Which graph of the capture.
        name: The pass or pipeline.
        outcome: "same" (the graph did not change), "changed" (and computes the same), "skipped"
            (and says why), "wrong", or "no capture".
        difference: The largest difference, relative to the largest value.
        note: Where it is, or what the pass said.
    """

    model: str
    way: str
    graph: str
    name: str
    outcome: str
    difference: float = 0.0
    note: str = ""


_HEADINGS = {
    "export": "torch.export",
    "dynamo": "dynamo",
    "train": "dynamo, in training",
    "aot": "AOTAutograd: joint, forward, backward",
    "eager": "eager attention",
}
_INTRODUCTION = """\
# Passes over the zoo

Every pass runs alone over every graph of the architectures of [zoo.md](zoo.md); then one step of
each graph before and after the pass runs on the same inputs and random numbers. The comparison
covers results, gradients of a random sum of the results, and the inputs, parameters and buffers
after the step. No pass may generate code.

Written by `make zoo-passes ARGS="--json FILE --write docs/passes_zoo.md"` on {date}: torch {torch},
transformers {transformers}, Python {python}. {models} architectures, {graphs} graphs, {findings}
runs of a pass: {changed} changed the graph and preserved its results, {wrong} did not. Of the
{every} architectures of the zoo, these were run:
{reached}.
CI runs a sample (`tests/passes/test_zoo.py`).

A cell shows how many graphs the pass changed, and the largest difference relative to the largest
value of its tensor. (For gradients, and for the results of joint and backward graphs, relative to a
thousandth of the largest gradient of the step if that is larger, because values that are zero
except for rounding differ by any factor.) 1e-3 is allowed; passes that change precision declare
their own tolerance. Other nonzero differences come from a different order of additions: when equal
values are merged, autograd adds their gradients earlier. Runs that exceed the tolerance are
repeated in float64, and the table shows that result.

`replace_pattern` runs seven rewrites that preserve values (`zoo/suite.py`); `bfloat16` is
`convert_dtype,remove_duplicate_casts,shape_propagation`. For `convert_dtype` and `bfloat16`,
gradients are compared together, by the norm of their difference. Excluded are graphs that normalize
by batch statistics in training (with two values per batch, rounding is unbounded), graphs whose
results are gradients, and graphs that return indices of discrete choices (dac's codes). "Eager
attention" is `attn_implementation="eager"`, exported in evaluation mode and captured by dynamo in
training mode, for the passes that fuse attention.

"""


def markdown(findings: Sequence[Finding]) -> str:
    """The page docs/passes_zoo.md."""
    captured = [each for each in findings if each.name]
    text = _INTRODUCTION.format(
        date=datetime.now(timezone.utc).date(),
        torch=torch.__version__,
        transformers=transformers.__version__,
        python=platform.python_version(),
        models=len({each.model for each in captured}),
        graphs=len({(each.model, each.way, each.graph) for each in captured}),
        findings=len(captured),
        every=len(zoo.ARCHITECTURES),
        reached=_reached(captured),
        changed=sum(each.outcome == "changed" for each in captured),
        wrong=sum(each.outcome == "wrong" for each in captured),
    )
    ways = [way for way in _HEADINGS if any(each.way == way for each in captured)]
    lines = [
        _line(["pass", *(_HEADINGS[way] for way in ways)]),
        _line(["---"] * (1 + len(ways))),
    ]
    for name in sorted({each.name for each in captured}):
        rows = [[e for e in captured if (e.name, e.way) == (name, way)] for way in ways]
        lines.append(_line([f"`{name}`", *map(_cell, rows)]))
    wrong = [each for each in captured if each.outcome == "wrong"]
    lines += ["", "Not preserved:", ""] if wrong else []
    lines += [
        f"- `{e.name}` on {e.model} ({e.way}, {e.graph}): {e.difference:.2g} {e.note}"
        for e in wrong
    ]
    missing = sorted({(e.model, e.way, e.note) for e in findings if not e.name})
    lines += ["", "Not captured, or refused:", ""] if missing else []
    lines += [f"- {model} ({way}): {note}" for model, way, note in missing]
    return text + "\n".join(lines) + "\n"


def _reached(captured: Sequence[Finding]) -> str:
    """How many architectures were run in each way."""
    models = {way: len({e.model for e in captured if e.way == way}) for way in _HEADINGS}
    return "; ".join(f"{_HEADINGS[way]}: {count}" for way, count in models.items() if count)


def _cell(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    wrong = sum(each.outcome == "wrong" for each in findings)
    changed = [each for each in findings if each.outcome == "changed"]
    if not changed and not wrong:
        return f"0 of {len(findings)}"
    worst = max((each.difference for each in changed), default=0.0)
    off = f", {worst:.1e}" if worst else ", equal"
    return f"{len(changed)} of {len(findings)}{off}" + (f", {wrong} WRONG" if wrong else "")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
