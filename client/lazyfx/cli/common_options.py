"""Options shared by several commands."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated

import typer

from lazyfx.errors import AddressError
from lazyfx.shared.addresses import read_address
from lazyfx.shared.pass_spelling import SpellingError, parse

if TYPE_CHECKING:
    from lazyfx.shared.pass_specs import PassSpec


GRAPH_SUFFIX = ".lazyfx"
MODEL_SUFFIXES = (".pt2", GRAPH_SUFFIX)


class Kind(str, Enum):
    """The formats in which a compiled module can be written."""

    CODE = "code"
    GRAPH = "graph"
    PICKLE = "pickle"
    PACKAGE = "package"
    PICTURE = "picture"
    TORCHSCRIPT = "torchscript"
    EXPORTED_PROGRAM = "exported_program"
    AOT_INDUCTOR = "aot_inductor"

    @property
    def holds_values(self) -> bool:
        """Whether it contains the values of parameters."""
        return self not in (Kind.CODE, Kind.GRAPH, Kind.PICTURE)


def _checked_address(address: str) -> str:
    try:
        return read_address(address)
    except AddressError as error:
        raise typer.BadParameter(str(error)) from error


def read_passes(text: str) -> list[PassSpec]:
    """Parse --passes.

    Raises:
        typer.BadParameter: The text is not a pipeline.
    """
    # `passes` imports torch, which is slow; --help does not need it.
    from lazyfx.shared.pass_specs import spec_of

    try:
        return [spec_of(each) for each in parse(text)]
    except SpellingError as error:
        raise typer.BadParameter(str(error), param_hint="--passes") from error


Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="LAZYFX_ADDRESS",
        metavar="HOST:PORT",
        callback=_checked_address,
        help="Address of the server.",
    ),
]
Passes = Annotated[
    str,
    typer.Option(
        "--passes",
        metavar="PASS,...",
        help="Passes in order: name or name{option=value,...}; `lazyfx passes` lists them. "
        "Quote text that contains braces.",
    ),
]
Rewrites = Annotated[
    list[str] | None,
    typer.Option(
        "--rewrite",
        metavar="MODULE:NAME",
        help="For replace_pattern: a pair (pattern, replacement) of functions to import; "
        "repeat for more pairs. Importing runs code on this machine.",
    ),
]
Timeout = Annotated[
    float, typer.Option("--timeout", min=0.001, help="Timeout of each call, in seconds.")
]
SendValues = Annotated[
    bool,
    typer.Option(
        "--send-values",
        help="Send tensor values to any pass for which the server requests them, plugins included. "
        "Default: only lazyfx's own passes that read values receive them.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
