"""`lazyfx serve`: hands its flags to the server."""

from __future__ import annotations

import typer

from lazyfx.cli.failing import fail


def serve(context: typer.Context) -> None:
    """Run a server; serve --help lists its settings.

    Raises:
        SystemExit: A setting is wrong, an address cannot be listened on, or --help was asked.
    """
    try:
        from lazyfx_server.__main__ import main
    except ModuleNotFoundError as error:
        raise fail(
            f"the server is not installed (no module {error.name!r}); "
            "install it with: pip install 'lazyfx[server]'"
        ) from error
    main(context.args)
