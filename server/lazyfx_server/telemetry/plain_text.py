"""Text of strangers in logs and messages: nothing in it can write a line or move a cursor.

Names, options and messages of torch hold what callers sent. An escape sequence in them would
reach the terminal of whoever reads the log, and a line feed would begin a line that looks like
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
"""Environment variable that tells workers how the server writes its log."""

_CONTINUED: Final = "    "


def escaped(text: str, *, keep_lines: bool = False) -> str:
    r"""The text with escapes ("\x1b", "\n", "\u202e") in place of what is not printed.

    Args:
        text: Any text.
        keep_lines: Leave line feeds and tabs.
    """
    return printable(text, len(text)) if keep_lines else one_line(text, len(text))


class PlainFormatter(logging.Formatter):
    """Lines of text; what follows a line that is ours, a traceback, is indented."""

    def format(self, record: logging.LogRecord) -> str:
        """One record; only its own first line begins at the margin."""
        line = f"{self.formatTime(record)} {record.levelname} {record.name}: "
        line = escaped(line + record.getMessage())
        for more in _details(self, record):
            line += "".join(
                f"\n{_CONTINUED}{row}" for row in escaped(more, keep_lines=True).split("\n")
            )
        return line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, in ASCII."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
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
    """A stream that writes text with its control characters escaped, whoever writes it.

    Args:
        stream: Where it goes.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text; lines stay lines."""
        self._stream.write(escaped(text, keep_lines=True))
        return len(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self._stream, name)


def log_to(stream: TextIO | PlainStream, level: str, form: str) -> None:
    """Log what this process says, and what torch says in it, to a stream.

    Args:
        stream: Where to.
        level: Least severe level.
        form: "text" or "json".
    """
    handler = logging.StreamHandler(cast("TextIO", stream))
    handler.setFormatter(JsonFormatter() if form == "json" else PlainFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)
    warnings.formatwarning = _warning
    reformat_torch_loggers()


def reformat_torch_loggers() -> None:
    """Have torch's own log handlers write as ours do; call it once torch is imported.

    torch puts handlers on its loggers that write messages as they are.
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
    del line  # of our own source, which says nothing to an operator
    return f"{category.__name__}: {message} ({filename}:{lineno})"


def _details(formatter: logging.Formatter, record: logging.LogRecord) -> list[str]:
    found = []
    if record.exc_info:
        found.append(formatter.formatException(record.exc_info))
    if record.stack_info:
        found.append(formatter.formatStack(record.stack_info))
    return found
