"""`lazyfx stats`: prints the server's ledger."""

from __future__ import annotations

import typer
from rich.console import Console

import lazyfx
from lazyfx.cli.common_options import Address, AsJson, Timeout
from lazyfx.cli.failing import reporting_errors
from lazyfx.cli.plain_data import as_json, plain
from lazyfx.cli.report_tables import (
    add_row,
    bytes_text,
    console,
    date_text,
    new_table,
    recompiles_text,
    seconds_text,
)
from lazyfx.report import Recompiles, enum_name
from lazyfx.shared.addresses import DEFAULT_ADDRESS
from lazyfx.v1 import compiler_pb2 as pb


def stats(
    address: Address = DEFAULT_ADDRESS, timeout: Timeout = 30.0, json: AsJson = False
) -> None:
    """Print what the server did and saved."""
    with reporting_errors(address), lazyfx.connect(address, timeout=timeout) as client:
        ledger = client.stats()
    if json:
        typer.echo(as_json(plain(ledger)))
    else:
        _print(console(), ledger)


def _print(out: Console, ledger: pb.GetStatsResponse) -> None:
    totals = new_table("the ledger", "value", numbers=("value",))
    lookups = ledger.hits + ledger.misses + ledger.joins
    rows = (
        ("counting since", date_text(ledger.since)),
        ("server starts", str(ledger.starts)),
        ("lookups", str(lookups)),
        ("  hits", _share(ledger.hits, lookups)),
        ("  joined in flight", _share(ledger.joins, lookups)),
        ("  misses", _share(ledger.misses, lookups)),
        ("recompiles requested/performed/saved", _recompiles(ledger.recompiles)),
        ("code generation saved, estimated", seconds_text(ledger.saved_seconds)),
        ("  of that by the graph's own measured cost", seconds_text(ledger.saved_seconds_measured)),
        ("code generation done, measured", seconds_text(ledger.performed_seconds)),
        ("compile time saved by hits and joins", seconds_text(ledger.reused_seconds)),
        ("time in passes", seconds_text(ledger.pass_seconds)),
        ("service overhead", seconds_text(ledger.overhead_seconds)),
        ("net savings, overhead deducted", _signed(ledger.net_seconds)),
        ("store entries", str(ledger.store.entries)),
        (
            "store size",
            f"{bytes_text(ledger.store.bytes)} of {bytes_text(ledger.store.limit_bytes)}",
        ),
        ("store evictions", str(ledger.store.evictions)),
    )
    for name, value in rows:
        add_row(totals, name, value)
    out.print(totals)

    _print_tenants(out, ledger)
    reasons = new_table("miss reason", "count", numbers=("count",))
    for miss in ledger.miss_reasons:
        name = enum_name(pb.MissReason, miss.reason, "MISS_REASON_").lower()
        if miss.count:
            add_row(reasons, name, str(miss.count))
    if reasons.row_count:
        out.print(reasons)

    numbers = ("runs", "seconds", "requested/performed/saved")
    passes = new_table("pass", *numbers, numbers=numbers)
    for entry in ledger.passes:
        if entry.runs:
            add_row(
                passes,
                entry.name,
                str(entry.runs),
                seconds_text(entry.seconds),
                _recompiles(entry.recompiles),
            )
    if passes.row_count:
        out.print(passes)


def _print_tenants(out: Console, ledger: pb.GetStatsResponse) -> None:
    numbers = (
        "hits",
        "misses",
        "joins",
        "requested/performed/saved",
        "saved",
        "spared",
        "overhead",
    )
    tenants = new_table("tenant", *numbers, numbers=numbers)
    for row in ledger.tenants:
        add_row(
            tenants,
            row.tenant,
            str(row.hits),
            str(row.misses),
            str(row.joins),
            _recompiles(row.recompiles),
            seconds_text(row.saved_seconds),
            seconds_text(row.reused_seconds),
            seconds_text(row.overhead_seconds),
        )
    out.print(tenants)


def _signed(seconds: float) -> str:
    return f"-{seconds_text(-seconds)}" if seconds < 0 else seconds_text(seconds)


def _share(count: int, total: int) -> str:
    return f"{count} ({count / total:.0%})" if total else str(count)


def _recompiles(message: pb.Recompiles) -> str:
    return recompiles_text(Recompiles(message.requested, message.performed))
