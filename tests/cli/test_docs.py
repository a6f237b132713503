"""What the documentation names exists: pages, sections, files, flags, variables, metrics, alerts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import typer

from lazyfx.cli.application import app
from lazyfx.shared.environment import CLIENT_VARIABLES, PREFIX
from lazyfx_server.settings.loading import flags
from lazyfx_server.settings.model import FIELDS

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
_HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
_FLAG = re.compile(r"(?<![\w-])--[a-z][a-z0-9-]+")
_VARIABLE = re.compile(rf"\b{PREFIX}([A-Z_]*[A-Z])\b")
# What follows the name of a script belongs to the script.
_COMMAND = re.compile(r"(?:`|\$ )lazyfx ([a-z]+)(?=[ `\n])((?:(?!\.py\b)[^\n`#])*)")
_TARGET = re.compile(r"`make ([a-z-]+)")
_METRIC = re.compile(r"\blazyfx_[a-z_]+_(?:total|seconds|bytes|connected|nodes|workers|ratio)\b")
_ALERT = re.compile(r"\bLazyfx[A-Z]\w+")
_PLACEHOLDER = re.compile(r"@[A-Z]+@")
_FILE = re.compile(r"`((?:deploy|tests|docs|proto|bench|zoo|chaos|conformance)/[\w./@-]+)`")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_exists(page: Path) -> None:
    assert [*missing(page)] == []


def missing(page: Path) -> Iterator[str]:
    text = page.read_text("utf-8")
    yield from _PLACEHOLDER.findall(text)
    for file, section in _LINK.findall(text):
        target = (page.parent / file).resolve() if file else page
        if not target.exists():
            yield f"link to {file}"
        elif section and section not in sections(target):
            yield f"link to {file}#{section}"
    yield from (f"file {name}" for name in _FILE.findall(text) if not (ROOT / name).exists())
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
    yield from (f"make {name}" for name in _TARGET.findall(text) if name not in targets)
    known = CLIENT_VARIABLES | {name.upper() for name in FIELDS} | variables_of_files()
    yield from (f"{PREFIX}{name}" for name in _VARIABLE.findall(text) if name not in known)
    for name, rest in _COMMAND.findall(text):
        if name not in options():
            yield f"lazyfx {name}"
            continue
        yield from (f"lazyfx {name} {flag}" for flag in _FLAG.findall(rest)
                    if flag not in options()[name])  # fmt: skip
    if page.name != "CHANGELOG.md":  # what it names may have been removed
        yield from (name for name in _METRIC.findall(text) if name not in metrics())
    yield from (name for name in _ALERT.findall(text) if name not in metrics())


@cache
def options() -> dict[str, list[str]]:
    """The options of each command."""
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    found = {
        name: ["--help", *(option for each in command.params for option in each.opts)]
        for name, command in commands.items()
    }
    found["serve"] = flags()
    return found


@cache
def variables_of_files() -> set[str]:
    """Variables of compose files and of tests."""
    files = [*ROOT.glob("deploy/compose/*.yaml"), *ROOT.glob("tests/*/*.py")]
    return {name for file in files for name in _VARIABLE.findall(file.read_text("utf-8"))}


@cache
def sections(page: Path) -> list[str]:
    """The anchors of a page, as GitHub makes them of its headings."""
    if page.suffix != ".md":
        return []
    return [
        re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        for heading in _HEADING.findall(page.read_text("utf-8"))
    ]


@cache
def metrics() -> str:
    """The page of all metrics, which a test compares with a server, and the rules."""
    rules = [path.read_text("utf-8") for path in (ROOT / "deploy/prometheus/rules").iterdir()]
    errors = (ROOT / "client/lazyfx/errors.py").read_text("utf-8")
    return (ROOT / "docs/metrics.md").read_text("utf-8") + "".join(rules) + errors
