"""Misspelled variables are reported; variables of other programs are not."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

import lazyfx
from lazyfx.backend.options import BackendOptions
from lazyfx.shared.environment import CLIENT_VARIABLES, misspelled, warn_of_misspelled
from lazyfx_server.settings.model import FIELDS

MISSPELLINGS = {
    "LAZYFX_ADRESS": "LAZYFX_ADDRESS",
    "LAZYFX_ADDR": None,
    "LAZYFX_TOKEN_FIL": "LAZYFX_TOKEN_FILE",
    "LAZYFX_VERIFY_KEY": "LAZYFX_VERIFY_KEYS",
    "LAZYFX_TIMEOUTS": "LAZYFX_TIMEOUT",
    "LAZYFX_ONERROR": "LAZYFX_ON_ERROR",
    "LAZYFX_TOKEN": None,
    "LAZYFX_BASE": None,
    "MY_LAZYFX_ADRESS": None,
}


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if "LAZYFX" in name]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize("variable", MISSPELLINGS)
def test_a_misspelled_variable(variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meant = MISSPELLINGS[variable]
    monkeypatch.setenv(variable, "x")
    messages = list(misspelled())
    if meant is None:
        assert messages == []
    else:
        assert messages == [
            f"{variable} is set, but lazyfx does not read it; did you mean {meant}?"
        ]


def test_settings_of_a_server_are_not_taken_for_misspellings(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in FIELDS:
        monkeypatch.setenv(f"LAZYFX_{name.upper()}", "x")
    assert list(misspelled()) == []


def test_the_client_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAZYFX_ADRES", "elsewhere:1")
    with caplog.at_level(logging.WARNING, logger="lazyfx"):
        for _ in range(2):
            lazyfx.connect("127.0.0.1:1").close()
        warn_of_misspelled()
    assert caplog.text.count("did you mean LAZYFX_ADDRESS?") == 1


def test_every_variable_that_is_read_is_known() -> None:
    not_variables = {"mode", "inductor"}
    options = {field.name.upper() for field in fields(BackendOptions)}
    assert options - {name.upper() for name in not_variables} <= CLIENT_VARIABLES
    source = "".join(path.read_text("utf-8") for path in Path(lazyfx.__file__).parent.rglob("*.py"))
    assert set(re.findall(r'_variable\("(\w+)"\)', source)) <= CLIENT_VARIABLES
