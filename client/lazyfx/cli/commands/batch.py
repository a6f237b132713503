"""`lazyfx batch`: compiles every model in a folder; a second run resumes."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import lazyfx
from lazyfx.cli.artifact_files import is_written, remove_leftovers, write_artifact
from lazyfx.cli.batch_records import (
    Record,
    file_digest,
    pipeline_identity,
    read_record,
    write_record,
)
from lazyfx.cli.common_options import (
    GRAPH_SUFFIX,
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
from lazyfx.cli.failing import describe_error, fail, reporting_errors
from lazyfx.cli.offered_passes import require_available
from lazyfx.cli.report_tables import add_row, console, new_table, recompiles_text, seconds_text
from lazyfx.errors import LazyfxError
from lazyfx.report import Recompiles
from lazyfx.shared.addresses import DEFAULT_ADDRESS

if TYPE_CHECKING:
    from lazyfx.artifacts.artifact_table import ArtifactKind
    from lazyfx.shared.pass_specs import PassSpec


@dataclass(frozen=True)
class _Outcome:
    record: Record
    skipped: bool


class _Batch:
    """The work on one folder, shared by threads."""

    def __init__(
        self,
        client: lazyfx.Client,
        source: Path,
        target: Path,
        specs: Sequence[PassSpec],
        emit: ArtifactKind | None,
        *,
        send_values: bool = False,
    ) -> None:
        self._client = client
        self._source = source
        self._target = target
        self._specs = specs
        self._emit = emit
        self._send_values = send_values
        self._identity = pipeline_identity(specs)
        # Loading a program is pure Python, and torch does not promise that it is thread-safe; jobs
        # only wait for the server in parallel.
        self._loading = threading.Lock()

    def run(self, path: Path) -> _Outcome:
        """Compile one file, unless it is already done."""
        file = path.relative_to(self._source)
        record = Record(str(file), "", self._identity, self._emit.name if self._emit else "")
        started = time.perf_counter()
        try:
            record = replace(record, digest=file_digest(path))
            before = read_record(self._record_of(file))
            if before is not None and before.matches(record) and self._is_written(file):
                return _Outcome(before, skipped=True)
            record = self._compile(path, file, record)
        except (LazyfxError, OSError) as error:
            record = replace(record, error=describe_error(error, self._client.address))
        record = replace(record, seconds=round(time.perf_counter() - started, 6))
        try:
            write_record(self._record_of(file), record)
        except OSError as error:
            record = replace(record, error=describe_error(error, self._client.address))
        return _Outcome(record, skipped=False)

    def _compile(self, path: Path, file: Path, record: Record) -> Record:
        # This imports torch, which is slow; --help does not need it.
        from lazyfx.cli.model_sources import load_model

        if path.suffix == GRAPH_SUFFIX and self._emit is not None and self._emit.holds_values:
            raise LazyfxError(
                f"{path.name} holds a graph without parameter values; use --emit "
                "code, graph or picture"
            )
        with self._loading:
            program = load_model(path)
        remote = self._client.compile(program, self._specs, send_values=self._send_values)
        if self._emit is not None:
            write_artifact(remote, self._emit, self._output_of(file, self._emit))
        report = remote.report
        return replace(
            record,
            module_key=remote.key,
            nodes_before=report.nodes_before,
            nodes_after=report.nodes_after,
            cache=remote.cache.status,
            recompiles_requested=report.recompiles.requested,
            recompiles_performed=report.recompiles.performed,
        )

    def _record_of(self, file: Path) -> Path:
        return self._target / file.with_name(file.name + ".json")

    def _output_of(self, file: Path, kind: ArtifactKind) -> Path:
        if file.suffix == GRAPH_SUFFIX:  # programs may differ only in their suffix
            return self._target / file.with_name(file.name + kind.suffix)
        return self._target / file.with_suffix(kind.suffix)

    def _is_written(self, file: Path) -> bool:
        return self._emit is None or is_written(self._output_of(file, self._emit), self._emit)


def batch(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            exists=True,
            file_okay=False,
            help="Folder to search for .pt2 and .lazyfx files. Reading a .pt2 file may run code: "
            "open only files that you trust.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            metavar="OUTDIR",
            file_okay=False,
            help="Receives a record (.json) for each file, and the artifacts that --emit "
            "selects. A second run skips files that were compiled before from the same bytes, "
            "with the same passes and --emit.",
        ),
    ],
    passes: Passes = "",
    rewrite: Rewrites = None,
    jobs: Annotated[
        int, typer.Option("--jobs", "-j", min=1, help="Files to process in parallel.")
    ] = 4,
    emit: Annotated[
        Emit | None,
        typer.Option("--emit", help="Artifact to write for each file. Default: records only."),
    ] = None,
    send_values: SendValues = False,
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 120.0,
) -> None:
    """Compile every .pt2 and .lazyfx file in a folder and its subfolders.

    Exits with status 1 if any file failed. A second run resumes where the first one stopped.
    """
    specs = read_passes(passes)
    files = _model_files(folder)
    with (
        reporting_errors(address),
        lazyfx.connect(address, timeout=timeout, priority="batch") as client,
    ):
        from lazyfx.cli.model_sources import add_rewrites

        specs = add_rewrites(specs, rewrite or [])
        # Without a server, or with a misspelled pass, every file would fail separately and slowly.
        require_available(client, specs)
        remove_leftovers(output)
        work = _Batch(client, folder, output, specs, emitted_kind(emit), send_values=send_values)
        outcomes = _run_all(work, files, jobs)
    _report(outcomes)


def _model_files(folder: Path) -> list[Path]:
    found = (path for suffix in MODEL_SUFFIXES for path in folder.rglob(f"*{suffix}"))
    files = sorted(path for path in found if path.is_file())
    if not files:
        raise typer.BadParameter(f"there is no .pt2 or .lazyfx file in {folder}", param_hint="DIR")
    return files


def _report(outcomes: Sequence[_Outcome]) -> None:
    """Print what became of the files.

    Raises:
        typer.Exit: A file failed.
    """
    console().print(_summary(outcomes))
    failed = sum(bool(outcome.record.error) for outcome in outcomes)
    skipped = sum(outcome.skipped for outcome in outcomes)
    typer.echo(
        f"{len(outcomes)} files: {len(outcomes) - failed - skipped} compiled, "
        f"{skipped} already done, {failed} failed"
    )
    if failed:
        raise typer.Exit(1)


def _run_all(work: _Batch, files: Sequence[Path], jobs: int) -> list[_Outcome]:
    """Run jobs in threads, with a progress bar on standard error."""
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(stderr=True),
    )
    with bar, ThreadPoolExecutor(jobs, thread_name_prefix="lazyfx-batch") as pool:
        task = bar.add_task("compiling", total=len(files))
        futures: list[Future[_Outcome]] = [pool.submit(work.run, path) for path in files]
        waiting = set(futures)
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                bar.advance(task, len(finished))
        except KeyboardInterrupt as error:
            # Let running ones finish; the next run does the others.
            pool.shutdown(wait=True, cancel_futures=True)
            fail("interrupted; run the same command again to resume")
            raise typer.Exit(130) from error
    return [future.result() for future in futures]


def _summary(outcomes: Sequence[_Outcome]) -> Table:
    numbers = ("nodes", "recompiles", "seconds")
    table = new_table("file", "nodes", "cache", "recompiles", "seconds", "error", numbers=numbers)
    for outcome in outcomes:
        record = outcome.record
        if record.error:
            add_row(
                table, record.file, "", "", "", seconds_text(record.seconds), record.error,
                style="red",
            )  # fmt: skip
            continue
        add_row(
            table,
            record.file,
            f"{record.nodes_before} -> {record.nodes_after}",
            "already done" if outcome.skipped else record.cache,
            recompiles_text(Recompiles(record.recompiles_requested, record.recompiles_performed)),
            seconds_text(record.seconds),
            "",
        )
    return table
