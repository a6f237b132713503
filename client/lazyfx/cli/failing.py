"""Failures of commands: one line on standard error that names the remedy, exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from lazyfx.errors import InvalidRequestError, LazyfxError, TimedOutError, UnavailableError
from lazyfx.shared.printable import printable

_NO_COLUMNS = str.maketrans("\n\r\t", "   ")


def fail(message: str) -> typer.Exit:
    """Print an error; raise the return value."""
    typer.echo(f"lazyfx: {printable(message)}", err=True)
    return typer.Exit(1)


def describe_error(error: Exception, address: str) -> str:
    """An error on one line, with what to do about it.

    Args:
        error: The error.
        address: The address of the server.
    """
    if isinstance(error, (UnavailableError, TimedOutError)):
        message = _one_line(error.reason)
        return message if address in message else f"{address}: {error.code}: {message}"
    if isinstance(error, InvalidRequestError):
        # The first is the error's own field.
        more = [f"{v.field}: {v.description}" for v in error.violations[1:]]
        return "; ".join([one_line(error), *map(_one_line, more)])
    return one_line(error)


def one_line(error: Exception) -> str:
    """An error's message without line breaks; its class if it has no message."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{printable(str(error.filename))}: {error.strerror}"
    return _one_line(str(error)) or type(error).__name__


def _one_line(text: str) -> str:
    return " ".join(text.translate(_NO_COLUMNS).split())


@contextmanager
def requiring_server(what: str) -> Iterator[None]:
    """Import modules of the server.

    Args:
        what: What needs them, the beginning of a sentence: "... is not installed".

    Raises:
        typer.Exit: The server is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise fail(
            f"{what} is not installed (no module {error.name!r}); "
            "install it with: pip install 'lazyfx[server]'"
        ) from error


@contextmanager
def reporting_errors(address: str) -> Iterator[None]:
    """Report lazyfx's own errors on one line, with exit status 1.

    Raises:
        typer.Exit: Replaces a LazyfxError, or an OSError of a file.
    """
    try:
        yield
    except (LazyfxError, OSError) as error:
        raise fail(describe_error(error, address)) from error
