"""`lazyfx warm`: compiles a job's graphs in advance, from its script or a recording."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from lazyfx.cli.common_options import Address, SendValues
from lazyfx.cli.failing import reporting_errors
from lazyfx.shared.addresses import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from lazyfx.warming.rank_script import Job


_DOES_IT_CALL: Final = 'does the script call torch.compile(model, backend="lazyfx")?'
_NOT_ALL: Final = f"not every graph was compiled on the server; {_DOES_IT_CALL}"
_NO_GRAPHS: Final = f"no rank has a graph; {_DOES_IT_CALL}"


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
    world_size: Annotated[
        int,
        typer.Option(
            "--world-size",
            min=0,
            help="Run the script once as each rank of a job of so many, with process groups that "
            "talk to nobody. 0: run it once, as it is.",
        ),
    ] = 0,
    nproc_per_node: Annotated[
        int,
        typer.Option(
            "--nproc-per-node",
            min=0,
            help="Ranks that share a node, as for torchrun. 0: all of them.",
        ),
    ] = 0,
    ranks: Annotated[
        str,
        typer.Option(
            "--ranks",
            metavar="0,1,8-15",
            help="Run only these of the ranks, in this order. Default: all.",
        ),
    ] = "",
    capture_only: Annotated[
        bool,
        typer.Option(
            "--capture-only",
            help="With --world-size: compare the graphs of the ranks, and compile nothing; needs "
            "no server.",
        ),
    ] = False,
) -> None:
    """Compile a job's graphs on the server before the fleet starts.

    Arguments after the script's name are passed to the script. Run it as the fleet will: with the
    same versions, CPU, batch size and OMP_NUM_THREADS (torchrun sets it to 1). A recording can be
    sent from any machine.

    With --world-size, no other process is needed: each rank of a job with gloo or NCCL runs here
    alone, one after the other, and the report names the node and the field in which the graphs of
    the ranks differ. Exits with status 1 if the script failed on a rank, or if a graph cannot be
    compiled on the server.
    """
    if script.is_dir() or script.suffix == ".lazyfx":
        with reporting_errors(address):
            _warm_recorded(script, address, timeout, send_values=send_values)
        return
    if not script.is_file():
        raise typer.BadParameter(f"{script}: no such file", param_hint="SCRIPT")
    if send_values:
        os.environ["LAZYFX_SEND_VALUES"] = "true"
    if not world_size:
        if ranks or nproc_per_node or capture_only:
            raise typer.BadParameter("is missing", param_hint="--world-size")
        _warm_by_running(script, context.args, address, steps, timeout)
        return
    chosen = read_ranks(ranks, world_size)
    _set_options(address, timeout)
    from lazyfx.warming.rank_script import Job

    job = Job(
        script=script,
        arguments=tuple(context.args),
        world_size=world_size,
        ranks_per_node=nproc_per_node or world_size,
        steps=steps,
        has_server=not capture_only,
    )
    _warm_ranks(job, chosen)


def read_ranks(text: str, world_size: int) -> list[int]:
    """Ranks such as "0,1,8-15", each once, in the order given; all if the text is empty.

    Raises:
        typer.BadParameter: It is not a list of ranks of this job.
    """
    if not text:
        return [*range(world_size)]
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            start, end = int(first), int(last if dash else first)
        except ValueError:
            raise typer.BadParameter(
                f"{text!r}: must be ranks such as 0,1,8-15", param_hint="--ranks"
            ) from None
        if end < start:
            raise typer.BadParameter(
                f"{part!r} names no rank; write the smaller one first: {end}-{start}",
                param_hint="--ranks",
            )
        if end >= world_size:
            raise typer.BadParameter(
                f"there is no rank {max(start, world_size)}; the last one is {world_size - 1}",
                param_hint="--ranks",
            )
        found += range(start, end + 1)
    return [*dict.fromkeys(found)]


def _warm_ranks(job: Job, ranks: Sequence[int]) -> None:
    # These import torch, which is slow; --help does not need it.
    from lazyfx.warming.rank_differences import group_ranks
    from lazyfx.warming.rank_processes import run_ranks
    from lazyfx.warming.rank_report import write_report

    with tempfile.TemporaryDirectory(prefix="lazyfx-warm-") as folder:
        finished = []
        for each in run_ranks(job, ranks, Path(folder)):
            finished.append(each)
            typer.echo(f"rank {each.run.rank}: graphs: {len(each.run.graphs)}", err=True)
        finished.sort(key=lambda each: each.run.rank)
        groups = group_ranks(finished)
        typer.echo(write_report(finished, groups))
    runs = [each.run for each in finished]
    if not any(run.graphs for run in runs):
        typer.echo(_NO_GRAPHS, err=True)
        raise typer.Exit(1)
    if any(run.problem or any(g.outcome == "local" for g in run.graphs) for run in runs):
        raise typer.Exit(1)


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
    _set_options(address, timeout)
    # Importing torch is slow; --help does not need it.
    from lazyfx.backend import backend_report
    from lazyfx.warming.stepped_script import SteppedScript

    SteppedScript(script, arguments, steps).run()
    report = backend_report()
    typer.echo(str(report))
    if not report.graphs or report.remote < len(report.graphs):
        typer.echo(_NOT_ALL, err=True)
        raise typer.Exit(1)


def _set_options(address: str, timeout: float) -> None:
    """Set the backend's options for the script; its own options are stronger."""
    os.environ.update(
        {
            "LAZYFX_ADDRESS": address,
            "LAZYFX_TIMEOUT": str(timeout),
            "LAZYFX_WAIT": "true",
            "LAZYFX_PRIORITY": "prewarm",
        }
    )
