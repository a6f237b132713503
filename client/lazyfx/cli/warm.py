"""`lazyfx warm`: run a script for a moment, so that the fleet finds its graphs compiled."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from lazyfx.cli.options import DEFAULT_ADDRESS, Address


class _Warmed(SystemExit):
    """Ends the script once it has trained for long enough."""


def warm(
    context: typer.Context,
    script: Annotated[
        Path, typer.Argument(help="A Python script that compiles with backend='lazyfx'.")
    ],
    address: Address = DEFAULT_ADDRESS,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Optimizer steps after which the script is ended.")
    ] = 2,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Seconds that one graph may take.")
    ] = 3600.0,
) -> None:
    """Run a script until its graphs are compiled on the server.

    Arguments after the script's name are the script's own. Run it as the fleet will: the same
    versions, CPU, batch size and OMP_NUM_THREADS (torchrun sets it to 1).
    """
    if not script.is_file():
        raise typer.BadParameter(f"{script}: no such file", param_hint="SCRIPT")
    os.environ.update(
        {
            "LAZYFX_ADDRESS": address,
            "LAZYFX_TIMEOUT": str(timeout),
            "LAZYFX_WAIT": "true",
        }
    )
    # torch takes its time: --help does without.
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from lazyfx.backend import backend_report

    done = 0

    def count(*_: object) -> None:
        nonlocal done
        done += 1
        if done >= steps:
            raise _Warmed(0)

    hook = register_optimizer_step_post_hook(count)
    before = sys.argv, sys.path[0]
    sys.argv = [str(script), *context.args]
    sys.path[0] = str(script.parent.resolve())
    try:
        runpy.run_path(str(script), run_name="__main__")
    except _Warmed:
        pass
    finally:
        hook.remove()
        sys.argv, sys.path[0] = before
    report = backend_report()
    typer.echo(str(report))
    if not report.graphs or report.remote < len(report.graphs):
        typer.echo(
            "not everything is compiled on the server; does the script call "
            'torch.compile(model, backend="lazyfx")?',
            err=True,
        )
        raise typer.Exit(1)
