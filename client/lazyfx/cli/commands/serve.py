"""`lazyfx serve`: passes its flags to the server."""

from __future__ import annotations

from typing import Any

import typer
from click.shell_completion import CompletionItem
from typer.core import TyperCommand

from lazyfx.cli.failing import requiring_server


class ServeCommand(TyperCommand):
    """Shell completion of the flags of `lazyfx serve`, which the server parses itself."""

    def shell_complete(self, ctx: Any, incomplete: str) -> Any:
        """See `click.Command.shell_complete`."""
        try:
            from lazyfx_server.__main__ import flags
        except ModuleNotFoundError:
            return super().shell_complete(ctx, incomplete)
        return [CompletionItem(flag) for flag in flags() if flag.startswith(incomplete)]


def serve(context: typer.Context) -> None:
    """Run a server; serve --help lists its settings.

    Raises:
        SystemExit: A setting is invalid, an address cannot be bound, or --help was given.
    """
    with requiring_server("the server"):
        from lazyfx_server.__main__ import main
    main(context.args)
