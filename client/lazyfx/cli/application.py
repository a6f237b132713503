"""The application with all commands."""

from __future__ import annotations

from typing import Annotated

import typer

import lazyfx
from lazyfx.cli.commands.batch import batch
from lazyfx.cli.commands.demo import demo
from lazyfx.cli.commands.explain import explain
from lazyfx.cli.commands.keys import keys
from lazyfx.cli.commands.optimize import optimize
from lazyfx.cli.commands.passes import passes
from lazyfx.cli.commands.serve import ServeCommand, serve
from lazyfx.cli.commands.stats import stats
from lazyfx.cli.commands.token import token
from lazyfx.cli.commands.trust import trust_server
from lazyfx.cli.commands.warm import warm
from lazyfx.cli.usage import Command

app = typer.Typer(
    help="Compile torch.fx graphs once, remotely, and only on demand.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Square brackets in help are literal.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command(
    cls=ServeCommand,
    add_help_option=False,
    context_settings={
        "allow_extra_args": True,
        "ignore_unknown_options": True,
        "help_option_names": [],
    },
)(serve)
app.command(cls=Command)(optimize)
app.command(cls=Command)(batch)
app.command(cls=Command)(passes)
app.command(cls=Command)(stats)
app.command(cls=Command)(explain)
app.command(cls=Command)(demo)
# Everything after the script's name belongs to the script, including options.
app.command(
    cls=Command, context_settings={"allow_extra_args": True, "allow_interspersed_args": False}
)(warm)
app.command(cls=Command)(keys)
app.command(cls=Command)(token)
app.command("trust", cls=Command)(trust_server)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"lazyfx {lazyfx.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    del version
