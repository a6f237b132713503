"""The non-default options of a pass, and the spelling of passes with options.

`pass_spelling` parses this spelling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from lazyfx.shared.pass_spelling import spell
from lazyfx_server.passes.base import OptionValue, Pass


def changed_options(pass_: Pass) -> dict[str, OptionValue]:
    """The options of a pass that differ from their defaults, sorted by name."""
    values = {f.name: getattr(pass_, f.name) for f in fields(pass_)}
    defaults = {f.name: f.default for f in fields(pass_)}
    return {
        name: values[name]
        for name in sorted(values)
        if _typed(values[name]) != _typed(defaults[name])
    }


def spell_pipeline(passes: Sequence[Pass]) -> str:
    """The canonical spelling of passes in order; defaults are omitted."""
    return spell((p.name, changed_options(p)) for p in passes)


def _typed(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(_typed(item) for item in value)
    return (type(value), repr(value))
