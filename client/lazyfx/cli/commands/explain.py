"""`lazyfx explain`: why two graphs have different digests."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lazyfx.cli.common_options import AsJson
from lazyfx.cli.failing import reporting_errors
from lazyfx.cli.plain_data import as_json

if TYPE_CHECKING:
    from lazyfx.explaining import Explainable

_GRAPH = (
    "A graph written by lazyfx.save_graph, a .pt2 file, or package.module:factory, a function "
    "without arguments that returns a GraphModule or (module, example_inputs). The last two may "
    "run code: open only files that you trust."
)


def explain(
    first: Annotated[str, typer.Argument(metavar="FIRST", help=_GRAPH, show_default=False)],
    second: Annotated[str, typer.Argument(metavar="SECOND", help="As FIRST.", show_default=False)],
    picture: Annotated[
        Path | None,
        typer.Option("--picture", metavar="FILE", help="Write an SVG drawing of the differences."),
    ] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Kinds of differences to print.")
    ] = 20,
    json: AsJson = False,
) -> None:
    """Show which nodes and fields of two graphs differ; needs no server.

    Exits with 0 if both graphs are the same computation, 1 if they differ, and 2 if one of them
    cannot be read.
    """
    # These import torch, which is slow; --help does not need it.
    from lazyfx.explaining import explain as compare

    try:
        with reporting_errors(address=""):
            found = compare(_read(first), _read(second))
            if picture is not None:
                found.picture().save(picture)
    except typer.Exit as exit_:
        raise typer.Exit(2) from exit_
    if json:
        report = {
            "same": found.same,
            "digests": list(found.digests),
            "nodes": list(found.nodes),
            "differences": [asdict(difference) for difference in found.differences],
            "renamed": [list(names) for names in found.renamed],
        }
        typer.echo(as_json(report))
    else:
        typer.echo(found.text(limit))
    if not found.same:
        raise typer.Exit(1)


def _read(spelling: str) -> Explainable:
    from lazyfx.capture.capturing import GraphCapturer
    from lazyfx.capture.saved_graphs import load_graph
    from lazyfx.cli.model_sources import call_factory, load_program

    path = Path(spelling)
    if spelling.endswith(".pt2"):
        return load_program(path)
    if ":" in spelling and not path.exists():
        return GraphCapturer().capture(*call_factory(spelling, None)).module
    return load_graph(path)
