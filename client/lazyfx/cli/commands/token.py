"""`lazyfx token`: creates a token for a tenant of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lazyfx.cli.failing import fail, requiring_server

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Tenant that the token identifies.")]
File = Annotated[
    Path,
    typer.Option(
        "--file",
        metavar="FILE",
        help="The server's --tokens file, created if missing; it holds only hashes.",
    ),
]


def token(tenant: Tenant, file: File) -> None:
    """Create a bearer token, print it once, and add its hash to a server's token file.

    A running server rereads the file. To revoke a token, remove its line.
    """
    with requiring_server("tokens are created with the server, which"):
        from lazyfx_server.security.bearer_tokens import TokenFileError, add_token
    try:
        typer.echo(add_token(file, tenant))
    except TokenFileError as error:
        raise fail(str(error)) from error
