"""How commands fail: one line on standard error that names the remedy, exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lazyfx.errors import InvalidRequestError, LazyfxError, TimedOutError, UnavailableError
from lazyfx.printable import printable

_NO_COLUMNS = str.maketrans("\n\r\t", "   ")


def fail(message: str) -> typer.Exit:
    """Say what went wrong; raise what this returns."""
    typer.echo(f"lazyfx: {printable(message)}", err=True)
    return typer.Exit(1)


def in_words(error: Exception, address: str) -> str:
    """An error in one line, with what to do about it.

    Args:
        error: What was raised.
        address: The server that was asked.
    """
    if isinstance(error, (UnavailableError, TimedOutError)):
        told = one_line(error)
        return told.removeprefix(f"{error.code}: ") if address in told else f"{address}: {told}"
    if isinstance(error, InvalidRequestError):
        told = one_line(error)
        more = [v.description for v in error.violations if v.description not in told]
        return "; ".join([told, *more])
    return one_line(error)


def one_line(error: Exception) -> str:
    """An error's message without line breaks; its kind where it has none."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{printable(str(error.filename))}: {error.strerror}"
    return " ".join(str(error).translate(_NO_COLUMNS).split()) or type(error).__name__


@contextmanager
def failing_clearly(address: str) -> Iterator[None]:
    """Turn lazyfx's own errors into one line and exit status 1.

    Raises:
        typer.Exit: In place of a LazyfxError or of a file that cannot be read or written.
    """
    try:
        yield
    except (LazyfxError, OSError) as error:
        raise fail(in_words(error, address)) from error
