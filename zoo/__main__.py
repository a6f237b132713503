"""Encode and decode every architecture of the zoo, in every capture.

    python -m zoo [NAME ...] [--ways symbolic,export,dynamo,dynamic,aot] [--write docs/zoo.md]
                  [--processes 2]

Prints a table model x capture: graphs, nodes and bytes that passed, or why the capture itself
    failed. Exits with 1 if a captured graph did not pass.
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

# Captures leave much state in a process (dynamo's and torch.fx's caches).
_MODELS_A_PROCESS = 8


def main(argv: list[str] | None = None) -> int:
    """Run the zoo; 0 if all captured graphs passed."""
    parser = argparse.ArgumentParser(prog="python -m zoo", description=__doc__)
    parser.add_argument("names", nargs="*", help="architectures; all by default")
    parser.add_argument("--ways", default=",".join(captures.WAYS))
    parser.add_argument("--write", type=Path, help="write the table as Markdown, after each model")
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
                # After each model, so that an interrupted run keeps its results.
                options.write.write_text(markdown(rows, ways))
        pool.close()
        pool.join()
    failed = sum(cell.broken for row in rows.values() for cell in row.values())
    through = sum(cell.came_through for row in rows.values() for cell in row.values())
    console.print(f"{through} captures passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
