"""`lazyfx token`: a token for a tenant of a server."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lazyfx.cli.failing import fail

Tenant = Annotated[str, typer.Argument(metavar="TENANT", help="Whom the token is for.")]
File = Annotated[
    Path,
    typer.Option(
        "--file",
        metavar="FILE",
        help="The server's --tokens file, made when it is not there; it holds hashes only.",
    ),
]


def token(tenant: Tenant, file: File) -> None:
    """Make a bearer token, print it once, and add its hash to a server's token file.

    A running server reads the file again. To end a token, remove its line.
    """
    try:
        from lazyfx_server.security.tokens import TokenFileError, add_token
    except ModuleNotFoundError as error:
        raise fail(
            f"tokens are made where the server is, and it is not installed (no module "
            f"{error.name!r}); install it with: pip install 'lazyfx[server]'"
        ) from error
    try:
        typer.echo(add_token(file, tenant))
    except TokenFileError as error:
        raise fail(str(error)) from error
