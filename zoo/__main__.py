"""Take every architecture of the zoo through the wire, in every capture.

    python -m zoo [NAME ...] [--ways symbolic,export,dynamo,dynamic,aot] [--write docs/zoo.md]

Prints a table model x capture: graphs, nodes and bytes of what came through, or why the
capture itself failed. Exits with 1 when something that was captured did not come through.
"""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

import torch
from rich.console import Console

import zoo
from zoo import captures
from zoo.run import Cell, run
from zoo.table import markdown, plain


def main(argv: list[str] | None = None) -> int:
    """Run the zoo; 0 when all that was captured came through."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all of them when left out")
    parser.add_argument("--ways", default=",".join(captures.WAYS))
    parser.add_argument("--write", type=Path, help="write the table as Markdown, model by model")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    console = Console(stderr=True)
    ways = options.ways.split(",")
    rows: dict[str, dict[str, Cell]] = {}
    for name in options.names or zoo.ARCHITECTURES:
        rows[name] = run(zoo.ARCHITECTURES[name], ways)
        console.print(plain(name, rows[name]), highlight=False, soft_wrap=True)
        if options.write:
            # After each model: a run that is stopped leaves what it found.
            options.write.write_text(markdown(rows, ways))
    failed = sum(cell.broken for row in rows.values() for cell in row.values())
    through = sum(cell.came_through for row in rows.values() for cell in row.values())
    console.print(f"{through} captures came through, {failed} did not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
