"""Take every architecture of the zoo through the wire, in every capture.

    python -m zoo [NAME ...] [--ways symbolic,export,dynamo,dynamic,aot] [--write docs/zoo.md]
                  [--processes 2]

Prints a table model x capture: graphs, nodes and bytes of what came through, or why the
capture itself failed. Exits with 1 when something that was captured did not come through.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path

from rich.console import Console

import zoo
from zoo import captures
from zoo.run import Cell, prepare, run_named
from zoo.table import markdown, plain

# Captures leave much behind in a process (dynamo's and torch.fx's caches).
_MODELS_A_PROCESS = 8


def main(argv: list[str] | None = None) -> int:
    """Run the zoo; 0 when all that was captured came through."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all of them when left out")
    parser.add_argument("--ways", default=",".join(captures.WAYS))
    parser.add_argument("--write", type=Path, help="write the table as Markdown, model by model")
    parser.add_argument("--processes", type=int, default=min(os.cpu_count() or 1, 4))
    options = parser.parse_args(argv)
    console = Console(stderr=True)
    ways = options.ways.split(",")
    rows: dict[str, dict[str, Cell]] = {}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zoo.run", "transformers"])
    with context.Pool(options.processes, prepare, maxtasksperchild=_MODELS_A_PROCESS) as pool:
        asked = [(name, ways) for name in options.names or zoo.ARCHITECTURES]
        for name, row in pool.imap(run_named, asked):
            rows[name] = row
            console.print(plain(name, row), highlight=False, soft_wrap=True)
            if options.write:
                # After each model: a run that is stopped leaves what it found.
                options.write.write_text(markdown(rows, ways))
        pool.close()
        pool.join()
    failed = sum(cell.broken for row in rows.values() for cell in row.values())
    through = sum(cell.came_through for row in rows.values() for cell in row.values())
    console.print(f"{through} captures came through, {failed} did not")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
