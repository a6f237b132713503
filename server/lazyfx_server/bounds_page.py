"""Writes docs/bounds.md from the settings: `python -m lazyfx_server.bounds_page [--write]`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from pydantic import ByteSize

from lazyfx_server.compiling.limits.request_checks import FORMAT_BOUNDS
from lazyfx_server.settings.limits import QuotaLimits
from lazyfx_server.settings.model import FIELDS, Settings

PAGE: Final = Path(__file__).parents[2] / "docs" / "bounds.md"

_HEAD: Final = """\
# Bounds

<!-- Written by `make bounds` from the settings; a test fails when it is stale. -->

Everything whose size a request controls is bounded. Most bounds are settings of `lazyfx serve`
(the flag is the name with dashes; environment variables and TOML as for all settings); some belong
to the format. `GetServerInfo` lists each bound and its value. A request that exceeds a bound is
refused, and the error names the field, the node if there is one, and the setting: INVALID_ARGUMENT
if the request can never be served, otherwise RESOURCE_EXHAUSTED, with RetryInfo if a retry can
help.

Counts and lengths are checked on the serialized bytes, before the message is parsed: every repeated
field and every string has a bound, and an oversized request costs no more steps than the bound
allows. Requests of more than 16 KiB are checked and parsed off the event loop. The body of a graph
stays in the received bytes while the request waits.

| Bound | Default | What it bounds |
| --- | --- | --- |
"""

_FORMAT: Final = {
    "max_nesting": "Nesting depth of lists, dictionaries, values, expressions and graphs.",
    "max_expression_nodes": "One symbolic expression, written out as a tree.",
    "max_name_bytes": "Name of a pass, an option, a dtype or a feature.",
    "max_options": "Options of one pass.",
    "max_list_items": "Items in the lists of one request, per kind: items of options, guards "
    "and constants of rewrites, states and settings of native compiles.",
    "max_spelling": "Characters of a request's passes in text form.",
}

_TAIL: Final = """
The rewrites of a request are graphs, and the bounds of graphs apply to them.

## Quotas

What one tenant may use over time. All quotas are off by default.

| Quota | What it bounds |
| --- | --- |
"""


def page() -> str:
    """The text of docs/bounds.md."""
    rows = "".join(f"| `{name}` | {default} | {text} |\n" for name, default, text in _rows())
    quotas = "".join(f"| `{name}` | {_text(name)} |\n" for name in QuotaLimits.model_fields)
    return _HEAD + rows + _TAIL + quotas


def _rows() -> Iterator[tuple[str, str, str]]:
    for name, value in Settings().limits:
        yield name, _default(value), _text(name)
    for name, value in FORMAT_BOUNDS.items():
        yield name, f"{value:,} (format)", _FORMAT[name]


def _default(value: Any) -> str:
    if isinstance(value, ByteSize):
        return _bytes(value)
    if isinstance(value, float):
        return f"{value:,g} s"
    if value >= 2**32:
        return f"2^{value.bit_length() - 1}"
    return f"{value:,}"


def _bytes(value: int) -> str:
    for size, unit in ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB")):
        if value >= size and value % size == 0:
            return f"{value // size:,} {unit}"
    return f"{value:,} bytes"


def _text(name: str) -> str:
    return " ".join((FIELDS[name].description or "").split())


def main() -> None:
    """Print the page, or write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write docs/bounds.md")
    if parser.parse_args().write:
        PAGE.write_text(page(), "utf-8")
    else:
        sys.stdout.write(page())


if __name__ == "__main__":
    main()
