"""How commands fail: one line on standard error that names the remedy, exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lazyfx.errors import InvalidRequestError, LazyfxError, TimedOutError, UnavailableError
from lazyfx.shared.printable import printable

_NO_COLUMNS = str.maketrans("\n\r\t", "   ")


def fail(message: str) -> typer.Exit:
    """Say what went wrong; raise what this returns."""
    typer.echo(f"lazyfx: {printable(message)}", err=True)
    return typer.Exit(1)


def describe_error(error: Exception, address: str) -> str:
    """An error in one line, with what to do about it.

    Args:
        error: What was raised.
        address: The server that was asked.
    """
    if isinstance(error, (UnavailableError, TimedOutError)):
        told = _one_line(error.reason)
        return told if address in told else f"{address}: {error.code}: {told}"
    if isinstance(error, InvalidRequestError):
        # The first is what the error says itself.
        more = [f"{v.field}: {v.description}" for v in error.violations[1:]]
        return "; ".join([one_line(error), *map(_one_line, more)])
    return one_line(error)


def one_line(error: Exception) -> str:
    """An error's message without line breaks; its kind where it has none."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{printable(str(error.filename))}: {error.strerror}"
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.translate(_NO_COLUMNS).split())


@contextmanager
def reporting_errors(address: str) -> Iterator[None]:
    """Turn lazyfx's own errors into one line and exit status 1.

    Raises:
        typer.Exit: In place of a LazyfxError or of a file that cannot be read or written.
    """
    try:
        yield
    except (LazyfxError, OSError) as error:
        raise fail(describe_error(error, address)) from error
