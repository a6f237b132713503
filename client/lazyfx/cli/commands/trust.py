"""`lazyfx trust`: stores the server keys that this user trusts, like ssh."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import lazyfx
from lazyfx.cli.common_options import Timeout
from lazyfx.cli.failing import fail, reporting_errors
from lazyfx.errors import AddressError
from lazyfx.shared.addresses import read_addresses, split_addresses
from lazyfx.shared.signing_keys import KEY_BYTES, fingerprint
from lazyfx.trust.known_servers import known_keys, trust

Server = Annotated[
    str,
    typer.Argument(
        metavar="HOST:PORT,...",
        help="Address of the server, spelled as in your jobs: trust is stored under this text; "
        "several replicas are joined by commas.",
        show_default=False,
    ),
]
Expected = Annotated[
    str,
    typer.Option(
        "--fingerprint",
        metavar="SHA256:...",
        help="Trust the key without a prompt if it has this fingerprint; fail otherwise.",
        show_default=False,
    ),
]


def trust_server(
    server: Server,
    expected: Expected = "",
    yes: Annotated[
        bool,
        typer.Option("--yes", help="Trust the key that the server presents, without a prompt."),
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace the key that is trusted so far.")
    ] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Stop trusting the server; it is not contacted.")
    ] = False,
    timeout: Timeout = 30.0,
) -> None:
    """Trust the key that a server signs with, so that its native artifacts are opened.

    Shows the fingerprint; compare it with the one in the server's log. The key is stored in
    known_servers in your configuration folder (~/.config/lazyfx), or in the file named by
    LAZYFX_KNOWN_SERVERS. Servers on this machine and servers with TLS need no entry.
    """
    try:
        addresses = split_addresses(read_addresses(server))
    except AddressError as error:
        raise typer.BadParameter(str(error), param_hint="HOST:PORT") from error
    accepted: bytes | None = None
    for address in addresses:
        with reporting_errors(address):
            if forget:
                typer.echo(f"{address} is no longer in {trust(address, ())}")
                continue
            published = _keys_of(address, timeout)
            for place, key in enumerate(published):
                typer.echo(f"{address} {fingerprint(key)}{' (in use)' if place == 0 else ''}")
            if accepted not in (None, published[0]):
                raise fail(
                    f"{address} signs with another key than {addresses[0]}; replicas must share "
                    "their signing keys (--signing-key). Its key was not stored"
                )
            is_accepted = accepted is not None
            _decide(address, published, known_keys(address), expected, yes or is_accepted, replace)
            accepted = published[0]
            path = trust(address, [key.hex() for key in published])
            typer.echo(f"trusted; written to {path}")


def _keys_of(address: str, timeout: float) -> list[bytes]:
    with lazyfx.connect(address, timeout=timeout) as client:
        found = [key.public_key for key in client.server_info().verify_keys]
    keys = [key for key in found if len(key) == KEY_BYTES]
    if not keys:
        raise fail(f"{address} publishes no signing key")
    return keys


def _decide(
    address: str,
    published: list[bytes],
    known: tuple[str, ...],
    expected: str,
    yes: bool,
    replace: bool,
) -> None:
    """Return if the key in use should be trusted.

    Raises:
        typer.Exit: It should not.
    """
    in_use = fingerprint(published[0])
    if known and published[0].hex() not in known and not replace:
        before = ", ".join(fingerprint(bytes.fromhex(key)) for key in known)
        raise fail(
            f"THE KEY OF {address} HAS CHANGED: the known key is {before}. Either the server has a "
            "new key, or another server answers at this address. If its operator confirms the new "
            "fingerprint, use --replace"
        )
    if expected:
        if expected != in_use:
            raise fail(f"the fingerprint is {in_use}, not {expected}; nothing was written")
        return
    if yes or published[0].hex() in known:
        return
    if not sys.stdin.isatty():
        raise fail("cannot prompt without a terminal; use --fingerprint SHA256:... (or --yes)")
    if not typer.confirm("Is this the fingerprint in the server's log?"):
        raise fail("nothing was written")
