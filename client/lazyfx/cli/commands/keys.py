"""`lazyfx keys`: shows and rotates the keys with which a server signs artifacts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import lazyfx
from lazyfx.cli.common_options import Address, AsJson, Timeout
from lazyfx.cli.failing import fail, reporting_errors, requiring_server
from lazyfx.cli.plain_data import as_json, plain
from lazyfx.shared.addresses import DEFAULT_ADDRESS

Rotate = Annotated[
    Path | None,
    typer.Option(
        "--rotate",
        metavar="FILE",
        help="Add a new key to this key file (created if missing); the previous key stays valid. A "
        "running server rereads the file when it changes.",
    ),
]


def keys(
    address: Address = DEFAULT_ADDRESS,
    timeout: Timeout = 30.0,
    rotate: Rotate = None,
    json: AsJson = False,
) -> None:
    """Print the public keys that a server signs with, one per line, the active one first.

    Distribute them to clients as LAZYFX_VERIFY_KEYS, over a channel that you trust.
    """
    if rotate is not None:
        for public_key in _rotated(rotate):
            typer.echo(public_key)
        return
    with reporting_errors(address), lazyfx.connect(address, timeout=timeout) as client:
        found = client.server_info().verify_keys
    if json:
        typer.echo(as_json([plain(key) for key in found]))
        return
    for key in found:
        typer.echo(key.public_key.hex())


def _rotated(path: Path) -> tuple[str, ...]:
    with requiring_server("key files are managed by the server, which"):
        from lazyfx_server.security.secret_file import SecretFileError
        from lazyfx_server.security.signing import rotate
    try:
        return rotate(path)
    except SecretFileError as error:
        raise fail(str(error)) from error
