"""Options shared by several commands."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from lazyfx.artifacts.artifact_table import ARTIFACT_KINDS, ArtifactKind
from lazyfx.errors import AddressError
from lazyfx.shared.addresses import read_addresses
from lazyfx.shared.pass_spelling import SpellingError

if TYPE_CHECKING:
    from lazyfx.shared.pass_specs import PassSpec


GRAPH_SUFFIX = ".lazyfx"
MODEL_SUFFIXES = (".pt2", GRAPH_SUFFIX)
# Also the graphs that `optimize -o` writes.
GRAPH_SUFFIXES = (GRAPH_SUFFIX, ARTIFACT_KINDS["graph"].suffix)
FILE_KINDS = tuple(kind for kind in ARTIFACT_KINDS.values() if kind.suffix)


if TYPE_CHECKING:
    Emit: TypeAlias = Enum
else:
    Emit = Enum("Emit", {kind.name: kind.name for kind in FILE_KINDS})


def emitted_kind(emit: Emit | None) -> ArtifactKind | None:
    """The kind of artifact that --emit selects."""
    return None if emit is None else ARTIFACT_KINDS[emit.value]


def _checked_address(address: str) -> str:
    try:
        return read_addresses(address)
    except AddressError as error:
        raise typer.BadParameter(str(error)) from error


def read_passes(text: str) -> list[PassSpec]:
    """Parse --passes.

    Raises:
        typer.BadParameter: The text is not a pipeline.
    """
    # `passes` imports torch, which is slow; --help does not need it.
    from lazyfx.shared.pass_specs import normalize

    try:
        return [*normalize(text)]
    except SpellingError as error:
        raise typer.BadParameter(str(error), param_hint="--passes") from error


Address = Annotated[
    str,
    typer.Option(
        "--address",
        envvar="LAZYFX_ADDRESS",
        metavar="HOST:PORT,...",
        callback=_checked_address,
        help="Address of the server, or of several replicas, joined by commas.",
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
