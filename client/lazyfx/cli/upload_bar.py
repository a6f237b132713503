"""A progress bar for uploads on standard error, shown once there is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from lazyfx.calls.uploading import Progress as OnUpload
from lazyfx.cli.report_tables import console


@contextmanager
def upload_bar() -> Iterator[OnUpload]:
    """A callback for `connect(on_upload=)`; the bar disappears when done."""
    out = console(stderr=True)
    bar = Progress(
        TextColumn("uploading tensors"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=out,
        transient=True,
        disable=not out.is_terminal,
    )
    task = bar.add_task("upload", visible=False)

    def show(sent: int, total: int) -> None:
        bar.update(task, completed=sent, total=total, visible=True)

    with bar:
        yield show
