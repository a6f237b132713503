"""(d) The wire format compared with torch's GraphPickler; `bench/wire.py` compares more."""

from __future__ import annotations

import contextlib
import io
import sys
import warnings

from bench.rounds import Row

TARGETS = {"encode": 20.0, "decode": 8.0, "size": 10.0}


def measure(rounds: int) -> list[Row]:
    """Encode, decode and size of a decomposed GPT-2 with the values of its nodes."""
    from bench import wire

    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        found = {row.format: row for row in wire.measure("gpt2", rounds)}
    ours, theirs = found["lazyfx"], found["GraphPickler, val"]
    section = "(d) wire, gpt2"
    if theirs.error or ours.error:
        print(
            f"bench: the wire format was not compared: {theirs.error or ours.error}",
            file=sys.stderr,
        )
        return []
    columns = (
        ("encode", theirs.write_seconds, ours.write_seconds, "ms"),
        ("decode", theirs.read_seconds, ours.read_seconds, "ms"),
        ("size", [float(theirs.size_bytes)], [float(ours.size_bytes)], "bytes"),
    )
    rows = []
    for name, their_samples, our_samples, unit in columns:
        rows += [
            Row(section, f"GraphPickler, {name}", their_samples, unit=unit),
            Row(section, f"lazyfx, {name}", our_samples, unit=unit, against=their_samples,
                target=TARGETS[name], at_least=True),
        ]  # fmt: skip
    return rows
