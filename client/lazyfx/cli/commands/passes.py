"""`lazyfx passes`: lists the server's passes."""

from __future__ import annotations

import typer

import lazyfx
from lazyfx.cli.common_options import Address, AsJson, Timeout
from lazyfx.cli.failing import reporting_errors
from lazyfx.cli.plain_data import as_json, plain
from lazyfx.cli.report_tables import add_row, console, new_table
from lazyfx.shared.addresses import DEFAULT_ADDRESS
from lazyfx.v1 import compiler_pb2 as pb


def passes(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = 30.0, json: AsJson = False
) -> None:
    """List the server's passes and their options."""
    with reporting_errors(address), lazyfx.connect(address, timeout=timeout) as client:
        found, pipelines = client.passes(), client.pipelines()
    if json:
        typer.echo(as_json([plain(description) for description in found]))
        return
    table = new_table("pass", "does", "needs", "options")
    table.columns[0].no_wrap = True
    for description in found:
        options = "\n".join(_option(option) for option in description.options)
        summary = description.summary
        if not description.origin.startswith("lazyfx "):
            summary += f" ({description.origin})"
        add_row(table, description.name, summary, _needs(description), options)
    console().print(table)
    names = new_table("pipeline", "stands for")
    for name, spelling in sorted(pipelines.items()):
        add_row(names, name, spelling)
    console().print(names)


def _needs(description: pb.PassDescription) -> str:
    wants = (("values", description.needs_values), ("shapes", description.needs_shapes))
    return ", ".join(name for name, wanted in wants if wanted)


def _option(option: pb.PassOptionDescription) -> str:
    summary = f"\n  {option.summary}" if option.summary else ""
    return f"{option.name}: {option.type} = {option.default_value}{summary}"
