"""Checks that a server has a command's passes, before any file is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_spelling import UNTIL_STABLE
from lazyfx.shared.printable import shown
from lazyfx.shared.suggesting import SHORT_NAMES, did_you_mean

if TYPE_CHECKING:
    import lazyfx
    from lazyfx.shared.pass_specs import PassSpec

_GROUP_OPTIONS = ("at_most",)


def require_available(client: lazyfx.Client, specs: Iterable[PassSpec]) -> None:
    """Check the names of passes, pipelines and options against those of the server.

    Raises:
        LazyfxError: One is unknown; says what was probably meant.
        ServiceError: The server does not answer.
    """
    options = {found.name: [option.name for option in found.options] for found in client.passes()}
    options[UNTIL_STABLE] = list(_GROUP_OPTIONS)
    options |= {name: [] for name in client.pipelines()}
    for spec in _all(specs):
        if spec.name not in options:
            hint = did_you_mean(spec.name, options, SHORT_NAMES)
            raise LazyfxError(f"--passes: no pass or pipeline is named {shown(spec.name)}{hint}")
        for option in spec.options:
            if option not in options[spec.name]:
                hint = did_you_mean(option, options[spec.name])
                raise LazyfxError(f"--passes: {spec.name} has no option {shown(option)}{hint}")


def _all(specs: Iterable[PassSpec]) -> Iterator[PassSpec]:
    for spec in specs:
        yield spec
        yield from _all(spec.passes)
