"""`lazyfx optimize`: compiles one model, prints a report, and optionally writes an artifact."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import lazyfx
from lazyfx.cli.artifact_files import write_artifact
from lazyfx.cli.common_options import (
    FILE_KINDS,
    GRAPH_SUFFIXES,
    MODEL_SUFFIXES,
    Address,
    Emit,
    Passes,
    Rewrites,
    SendValues,
    Timeout,
    emitted_kind,
    read_passes,
)
from lazyfx.cli.failing import reporting_errors
from lazyfx.cli.offered_passes import require_available
from lazyfx.cli.report_tables import console, pass_table, summary_table
from lazyfx.cli.upload_bar import upload_bar
from lazyfx.errors import LazyfxError
from lazyfx.shared.addresses import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from lazyfx.artifacts.artifact_table import ArtifactKind
    from lazyfx.blocking_module import RemoteModule
    from lazyfx.capture.capturing import ExampleInputs
    from lazyfx.cli.model_sources import Model

_STANDARD_OUTPUT = Path("-")
_SUFFIXES = ", ".join(f"{kind.suffix} ({kind.name})" for kind in FILE_KINDS)


def optimize(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A .pt2 file, a .lazyfx file (lazyfx.save_graph, LAZYFX_RECORD), a .graph file, "
            "or package.module:factory, a function without arguments that returns (module, "
            "example_inputs). .pt2 files and factories may run code on this machine: open only "
            "files that you trust.",
            show_default=False,
        ),
    ],
    passes: Passes = "",
    rewrite: Rewrites = None,
    emit: Annotated[
        Emit | None,
        typer.Option(
            "--emit", help="Artifact to write to --output. Default: by the suffix of the file."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="File to write; its suffix selects the artifact unless --emit does: "
            f"{_SUFFIXES}. - prints code or a picture to standard output. "
            "Default: print the report only.",
        ),
    ] = None,
    example: Annotated[
        list[str] | None,
        typer.Option(
            "--example",
            metavar="[NAME=]DTYPE[SIZES]",
            help="An example input for a factory that returns only a module, e.g. "
            "input_ids=int64[2,8]; repeat for each input.",
        ),
    ] = None,
    send_values: SendValues = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 120.0,
) -> None:
    """Compile one model on the server and print a report."""
    kind = _kind_of_file(output) if emit is None else emitted_kind(emit)
    _check_output(kind, output)
    _check_source(model, kind)
    # These import torch, which is slow; --help does not need it.
    from lazyfx.cli.model_sources import add_rewrites

    specs = read_passes(passes)
    examples = _examples(example or [])
    with reporting_errors(address):
        specs = add_rewrites(specs, rewrite or [])
        with (
            upload_bar() as bar,
            lazyfx.connect(address, timeout=timeout, on_upload=bar) as client,
        ):
            require_available(client, specs)
            what, inputs = _read(model, examples)
            remote = client.compile(what, specs, inputs, send_values=send_values)
            if kind is not None and output is not None:
                _write(remote, kind, output)
    _report(remote, kind, output)


def _report(remote: RemoteModule, kind: ArtifactKind | None, output: Path | None) -> None:
    # The report must not mix with the artifact on standard output.
    out = console(stderr=output == _STANDARD_OUTPUT)
    out.print(summary_table(remote.report, remote.cache, remote.key))
    if remote.report.passes:
        out.print(pass_table(remote.report))
    if kind is not None and output not in (None, _STANDARD_OUTPUT):
        out.print(f"{kind.name} written to {output}", markup=False)


def _read(model: str, examples: ExampleInputs) -> Model:
    from lazyfx.cli.model_sources import call_factory, load_model

    if model.endswith((*MODEL_SUFFIXES, *GRAPH_SUFFIXES)):
        return load_model(Path(model)), None
    return call_factory(model, examples)


def _write(remote: RemoteModule, kind: ArtifactKind, output: Path) -> None:
    if output == _STANDARD_OUTPUT:
        typer.echo(remote.artifact(kind.name))
    else:
        write_artifact(remote, kind, output)


def _check_source(model: str, kind: ArtifactKind | None) -> None:
    if model.endswith((*MODEL_SUFFIXES, *GRAPH_SUFFIXES)):
        if not Path(model).is_file():
            raise typer.BadParameter(f"{model}: no such file", param_hint="MODEL")
        if model.endswith(GRAPH_SUFFIXES) and kind is not None and kind.holds_values:
            raise typer.BadParameter(
                f"{model} holds a graph without parameter values; choose code, graph "
                "or picture, or start from a .pt2 file",
                param_hint="--emit",
            )
    elif not all(part.strip() for part in model.partition(":")):
        raise typer.BadParameter(
            f"{model!r} is not a .pt2, .lazyfx or .graph file or package.module:factory",
            param_hint="MODEL",
        )


def _kind_of_file(output: Path | None) -> ArtifactKind | None:
    if output is None or output == _STANDARD_OUTPUT:
        return None
    for kind in FILE_KINDS:
        if output.name.endswith(kind.suffix):
            return kind
    raise typer.BadParameter(
        f"the suffix of {output.name} selects no artifact; use {_SUFFIXES}, or select one with "
        "--emit",
        param_hint="--output",
    )


def _check_output(kind: ArtifactKind | None, output: Path | None) -> None:
    if kind is None and output is not None:
        raise typer.BadParameter("select an artifact with --emit", param_hint="--output")
    if kind is not None and output is None:
        raise typer.BadParameter("name a file with --output FILE", param_hint="--emit")
    if output == _STANDARD_OUTPUT and kind is not None and not kind.is_text:
        raise typer.BadParameter("only code and pictures can be printed", param_hint="--output")


def _examples(spellings: list[str]) -> ExampleInputs:
    from lazyfx.cli.model_sources import read_examples

    try:
        return read_examples(spellings)
    except LazyfxError as error:
        raise typer.BadParameter(str(error), param_hint="--example") from error
