"""Reports as tables."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from lazyfx.report import Cache, Recompiles, Report

# Width of tables in a file or a pipe.
_PIPED_COLUMNS = 110


def console(*, stderr: bool = False) -> Console:
    """A console that does not wrap tables when its output is not a terminal."""
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _PIPED_COLUMNS)
    return made


def new_table(*columns: str, numbers: tuple[str, ...] = ()) -> Table:
    """An empty table.

    Args:
        columns: Headings.
        numbers: Headings of right-aligned columns.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        right = column in numbers
        table.add_column(column, justify="right" if right else "left", no_wrap=right)
    return table


def add_row(table: Table, *cells: str, style: str | None = None) -> None:
    """Add a row of literal text, including square brackets."""
    table.add_row(*(Text(cell) for cell in cells), style=style)


def seconds_text(seconds: float) -> str:
    """Seconds for people: "12.3 ms", "4.56 s"."""
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def bytes_text(count: float) -> str:
    """A size for people: "3.4 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            break
        count /= 1024
    return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"


def date_text(moment: Timestamp) -> str:
    """A date for people; "?" if it is out of range."""
    try:
        return moment.ToJsonString()
    except ValueError:
        return "?"


def recompiles_text(recompiles: Recompiles) -> str:
    """Recompiles in one cell: requested/performed/saved."""
    return f"{recompiles.requested}/{recompiles.performed}/{recompiles.saved}"


def pass_table(report: Report) -> Table:
    """What each pass did."""
    numbers = ("seconds", "nodes", "recompiles")
    table = new_table("pass", *numbers, "changed", "note", numbers=numbers)
    # Readers look for names, so these are the last to be wrapped.
    table.columns[0].min_width = max((len(entry.name) for entry in report.passes), default=0)
    table.columns[0].overflow = "fold"
    table.caption = "recompiles: requested / performed / saved"
    table.caption_justify = "left"
    for entry in report.passes:
        add_row(
            table,
            entry.spelling,
            seconds_text(entry.seconds),
            f"{entry.nodes_before} -> {entry.nodes_after}",
            recompiles_text(entry.recompiles),
            "yes" if entry.changed else "no",
            entry.note,
        )
    return table


def summary_table(report: Report, cache: Cache, key: str) -> Table:
    """The totals of a compile."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    reason = f": {cache.explanation}" if cache.explanation else ""
    saved = f", {seconds_text(report.saved_seconds)} of code generation saved"
    add_row(table, "module", key)
    add_row(table, "cache", cache.status + reason)
    add_row(table, "nodes", f"{report.nodes_before} -> {report.nodes_after}")
    add_row(
        table,
        "recompiles",
        f"{report.recompiles.requested} requested, {report.recompiles.performed} performed, "
        f"{report.recompiles.saved} saved" + (saved if report.saved_seconds > 0 else ""),
    )
    add_row(
        table,
        "seconds",
        f"{seconds_text(report.seconds)} in the worker, "
        f"{seconds_text(report.pass_seconds)} of them in passes",
    )
    return table
