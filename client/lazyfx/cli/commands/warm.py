"""`lazyfx warm`: compiles a job's graphs in advance, from its script or a recording."""

from __future__ import annotations

import os
import runpy
import sys
from pathlib import Path
from typing import Annotated

import typer

from lazyfx.cli.common_options import Address, SendValues
from lazyfx.cli.failing import reporting_errors
from lazyfx.shared.addresses import DEFAULT_ADDRESS


class _Warmed(SystemExit):
    """Raised to stop the script after enough steps."""


def warm(
    context: typer.Context,
    script: Annotated[
        Path,
        typer.Argument(
            metavar="SCRIPT",
            help="A Python script that compiles with backend='lazyfx'; or a folder or file that "
            "a job wrote with LAZYFX_RECORD.",
        ),
    ],
    address: Address = DEFAULT_ADDRESS,
    steps: Annotated[
        int, typer.Option("--steps", min=1, help="Stop the script after this many optimizer steps.")
    ] = 2,
    timeout: Annotated[
        float, typer.Option("--timeout", min=1, help="Timeout of each graph, in seconds.")
    ] = 3600.0,
    send_values: SendValues = False,
) -> None:
    """Compile a job's graphs on the server before the fleet starts.

    Arguments after the script's name are passed to the script. Run it as the fleet will: with the
    same versions, CPU, batch size and OMP_NUM_THREADS (torchrun sets it to 1). A recording can be
    sent from any machine.
    """
    if script.is_dir() or script.suffix == ".lazyfx":
        with reporting_errors(address):
            _warm_recorded(script, address, timeout, send_values=send_values)
        return
    if not script.is_file():
        raise typer.BadParameter(f"{script}: no such file", param_hint="SCRIPT")
    if send_values:
        os.environ["LAZYFX_SEND_VALUES"] = "true"
    _warm_by_running(script, context.args, address, steps, timeout)


def _warm_recorded(recording: Path, address: str, timeout: float, *, send_values: bool) -> None:
    # Importing torch is slow; --help does not need it.
    import lazyfx
    from lazyfx.backend.progress_display import show_progress
    from lazyfx.backend.recording import read_recording

    count = 0
    with lazyfx.connect(address, timeout=timeout, priority="prewarm") as client:
        for count, recorded in enumerate(read_recording(recording), start=1):
            nodes = len(recorded.graph.graph.nodes)
            remote = client.compile(recorded.graph, recorded.passes, send_values=send_values)
            if recorded.native is not None:
                with show_progress(nodes) as notice:
                    remote.native(recorded.native, timeout=timeout, on_progress=notice)
            typer.echo(f"{count}: {nodes} nodes, graph {remote.digest[:12]}: compiled")
    if not count:
        raise typer.BadParameter(f"{recording}: no recorded graphs in it", param_hint="SCRIPT")


def _warm_by_running(
    script: Path, arguments: list[str], address: str, steps: int, timeout: float
) -> None:
    os.environ.update(
        {
            "LAZYFX_ADDRESS": address,
            "LAZYFX_TIMEOUT": str(timeout),
            "LAZYFX_WAIT": "true",
            "LAZYFX_PRIORITY": "prewarm",
        }
    )
    # Importing torch is slow; --help does not need it.
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
    sys.argv = [str(script), *arguments]
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
            "not every graph was compiled on the server; does the script call "
            'torch.compile(model, backend="lazyfx")?',
            err=True,
        )
        raise typer.Exit(1)
