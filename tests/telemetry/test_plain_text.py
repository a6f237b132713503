"""Untrusted text stays on its line, in logs and in messages."""

from __future__ import annotations

import io
import json
import logging
import sys
import unicodedata

import grpc
import nursery
import pytest

from lazyfx_server.errors import InvalidRequestError
from lazyfx_server.rpc.error_statuses import status_of
from lazyfx_server.telemetry.plain_text import (
    JsonFormatter,
    PlainFormatter,
    PlainStream,
    escaped,
)

HOSTILE = (
    "a\x1b[2J\x1b]0;x\x07\r\n2026-01-01 ERROR lazyfx: forged\x85\u2028\u202ebidi\x9b31m\x7f\x00"
)


def is_plain(text: str) -> bool:
    return all(unicodedata.category(each) not in ("Cc", "Cf", "Zl", "Zp", "Cs") for each in text)


def test_no_control_character_is_left() -> None:
    everything = "".join(map(chr, range(0x110000)))
    left = {c for c in escaped(everything) if unicodedata.category(c) in ("Cc", "Zl", "Zp", "Cs")}
    assert not left
    assert is_plain(escaped(HOSTILE))
    assert escaped("plain text, é, 図, \\n") == "plain text, é, 図, \\n"
    assert escaped("a\nb\t\x1b", keep_lines=True) == "a\nb\t\\x1b"


@pytest.mark.parametrize("formatter", [PlainFormatter(), JsonFormatter()])
def test_a_record_is_one_line(formatter: logging.Formatter) -> None:
    record = logging.LogRecord("torch.fx", logging.WARNING, "f", 1, "%s", (HOSTILE,), None)
    text = formatter.format(record)
    assert "\n" not in text
    assert is_plain(text)


def test_a_traceback_is_no_line_of_ours() -> None:
    try:
        int(HOSTILE)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "failed", (), sys.exc_info())
    first, *rest = PlainFormatter().format(record).split("\n")
    assert first.endswith("failed")
    assert rest
    assert all(row.startswith("    ") and is_plain(row) for row in rest)
    assert is_plain(json.loads(JsonFormatter().format(record))["exception"].replace("\n", ""))


def test_whatever_is_written_to_the_stream_is_plain() -> None:
    inner = io.StringIO()
    PlainStream(inner).write("warning: " + HOSTILE)
    assert "\x1b" not in inner.getvalue()
    assert "\u202e" not in inner.getvalue()


def test_messages_to_callers_are_plain() -> None:
    status = status_of(InvalidRequestError.of_field(f"passes[0].{HOSTILE}", HOSTILE))
    assert status.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert is_plain(status.message)


def test_what_torch_and_warnings_say_is_plain() -> None:
    program = f"""
import logging, sys, warnings
from lazyfx_server.telemetry.plain_text import PlainStream, log_to
import torch
sys.stderr = PlainStream(sys.stderr)
log_to(sys.stderr, "info", "text")
hostile = {HOSTILE!r}
warnings.warn(hostile)
logging.getLogger("torch._dynamo").warning("%s", hostile)
print(hostile, file=sys.stderr)
"""
    run = nursery.run("torch", ["-c", program], check=True)
    assert run.stderr.count("forged") == 3
    assert is_plain(run.stderr.replace("\n", ""))
    # Only what is printed, not logged, may hold lines of its own.
    assert sum(line.startswith("2026-01-01 ERROR") for line in run.stderr.splitlines()) == 1
