"""The table of the zoo, as lines and as Markdown."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone

import torch
import transformers

import lazyfx
import zoo
from zoo.run import Cell

Rows = Mapping[str, Mapping[str, Cell]]

_HEADINGS = {
    "symbolic": "symbolic_trace",
    "export": "torch.export",
    "dynamo": "dynamo",
    "dynamic": "dynamo, dynamic sizes",
    "aot": "in training: dynamo; AOTAutograd's joint, forward, backward",
}
_INTRODUCTION = """\
# The zoo

Real architectures of transformers with random weights, each captured in every way that torch
supports. The configurations are tiny, but have every kind of layer. Every captured graph must pass:
encoding, decoding and encoding again give the same bytes and names, and the decoded graph computes
the same outputs, and the same gradients if the capture is differentiable. The server's checks
(`security/checked_graph.py`: reviewed targets, schemas, signatures, bounds) must accept it.

Written by `make zoo ARGS="--write docs/zoo.md"` on {date}: torch {torch}, transformers
{transformers}, Python {python}, lazyfx {lazyfx}. CI runs a sample (`tests/wire/test_zoo.py`).

A cell shows the number of graphs (several if the model has graph breaks, and in training), their
nodes, and the bytes of their bodies. A number in brackets refers to the reason why torch itself
could not capture the model; the reasons are below the table.

{models} models, {graphs} graphs; {through} captures passed, {failed} failed.

"""


def plain(name: str, row: Mapping[str, Cell]) -> str:
    """One model, a line for each capture."""
    return "\n".join([name, *(f"  {way:<9}{cell}" for way, cell in row.items())])


def markdown(rows: Rows, ways: Sequence[str]) -> str:
    """The page docs/zoo.md."""
    reasons: dict[str, int] = {}
    cells = [cell for row in rows.values() for cell in row.values()]
    lines = [
        _INTRODUCTION.format(
            date=datetime.now(timezone.utc).date(),
            torch=torch.__version__,
            transformers=transformers.__version__,
            python=platform.python_version(),
            lazyfx=lazyfx.__version__,
            models=len(rows),
            graphs=sum(len(cell.passages) for cell in cells),
            through=sum(cell.came_through for cell in cells),
            failed=sum(cell.broken for cell in cells),
        )
        + _line(["model", "kind", *(_HEADINGS[way] for way in ways)]),
        _line(["---"] * (2 + len(ways))),
    ]
    for name, row in rows.items():
        shown = [_short(row[way], reasons) for way in ways]
        lines.append(_line([name, zoo.ARCHITECTURES[name].kind, *shown]))
    lines.append("")
    lines += [f"- [{number}] {reason}" for reason, number in reasons.items()]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(cell: Cell, reasons: dict[str, int]) -> str:
    if cell.capture_error:
        reason = cell.capture_error.replace("|", "\\|")
        return f"[{reasons.setdefault(reason, 1 + len(reasons))}]"
    return str(cell).removeprefix("ok: ").replace("|", "\\|")
