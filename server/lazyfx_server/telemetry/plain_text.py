"""Untrusted text in logs and messages: it cannot start a line or move a cursor.

Names, options and torch's messages contain text that callers sent. An escape sequence in it would
reach the terminal of anyone who reads the log, and a line feed would start a line that looks like
one of ours.
"""

from __future__ import annotations

import json
import logging
import sys
import time
import warnings
from typing import Final, TextIO, cast

from lazyfx.shared.printable import one_line, printable

LOG_FORMAT_VARIABLE: Final = "LAZYFX_WORKER_LOG_FORMAT"
"""Environment variable that passes the server's log format to workers."""

_CONTINUED: Final = "    "


def escaped(text: str, *, keep_lines: bool = False) -> str:
    r"""The text with unprintable characters escaped ("\x1b", "\n", "\u202e").

    Args:
        text: Any text.
        keep_lines: Keep line feeds and tabs.
    """
    return printable(text, len(text)) if keep_lines else one_line(text, len(text))


class PlainFormatter(logging.Formatter):
    """Formats records as text; continuation lines, such as tracebacks, are indented."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record; only its first line starts at the margin."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        line = escaped(line + record.getMessage())
        for more in _details(self, record):
            line += "".join(
                f"\n{_CONTINUED}{row}" for row in escaped(more, keep_lines=True).split("\n")
            )
        return line


class JsonFormatter(logging.Formatter):
    """Formats records as one JSON object per line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """Format one record."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(record.created)),
            "level": record.levelname.lower(),
            "logger": escaped(record.name),
            "message": escaped(record.getMessage()),
        }
        if details := _details(self, record):
            line["exception"] = escaped("\n".join(details), keep_lines=True)
        return json.dumps(line)


class PlainStream:
    """A text stream that escapes control characters.

    Args:
        stream: The destination.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; line feeds are kept."""
        self._stream.write(escaped(text, keep_lines=True))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def log_to(stream: TextIO | PlainStream, level: str, form: str) -> None:
    """Write this process's log, including torch's, to a stream.

    Args:
        stream: The destination.
        level: The least severe level to log.
        form: "text" or "json".
    """
    handler = logging.StreamHandler(cast("TextIO", stream))
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    warnings.formatwarning = _warning
    reformat_torch_loggers()


def reformat_torch_loggers() -> None:
    """Make torch's log handlers use our format; call it once torch is imported.

    torch installs handlers that write messages unescaped.
    """
    ours = logging.getLogger().handlers[0]
    for name in list(logging.root.manager.loggerDict):
        if name.partition(".")[0] == "torch":
            for handler in logging.getLogger(name).handlers:
                handler.setFormatter(ours.formatter)
                if isinstance(handler, logging.StreamHandler) and handler.stream is sys.__stderr__:
                    handler.setStream(sys.stderr)


def _warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    del line  # about our own source, which does not help an operator
    return f"{category.__name__}: {message} ({filename}:{lineno})"


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    found = []
    if record.exc_info:
        found.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        found.append(formatter.formatStack(record.stack_info))
    return found
