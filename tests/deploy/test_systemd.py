"""The systemd units: valid, and in accord with the server's own times and ports."""

from __future__ import annotations

import configparser
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.settings.loading import load
from lazyfx_server.settings.model import FIELDS

UNIT = "lazyfx@.service"


@pytest.fixture(scope="module")
def unit(root: Path) -> configparser.ConfigParser:
    # Units repeat keys; the last one of each is enough here.
    parser = configparser.ConfigParser(strict=False, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read(root / "deploy/systemd" / UNIT)
    return parser


def test_systemd_accepts_the_units(root: Path, tool: Callable[[str], str], tmp_path: Path) -> None:
    for name in (UNIT, "lazyfx.target"):
        text = (root / "deploy/systemd" / name).read_text()
        # It also checks that the programs exist.
        text = text.replace("/opt/lazyfx/bin/lazyfx", "/bin/true")
        (tmp_path / name).write_text(text.replace("/opt/lazyfx/bin/python", sys.executable))
    command = [tool("systemd-analyze"), "verify", "--man=no", *map(str, tmp_path.iterdir())]
    checked = subprocess.run(command, capture_output=True, text=True, timeout=60)
    ours = [line for line in checked.stderr.splitlines() if "lazyfx" in line]
    assert (checked.returncode, ours) == (0, [])


def test_the_command_is_one_that_the_server_reads(unit: configparser.ConfigParser) -> None:
    program, command, *flags = unit["Service"]["ExecStart"].replace("%i", "2").split()
    assert (Path(program).name, command) == ("lazyfx", "serve")
    settings = load([*flags, "--store-path", "/var/lib/lazyfx"])
    assert settings.addresses.listen == "127.0.0.1:8712"
    assert settings.addresses.metrics_port == 8722


def test_the_server_gets_longer_to_stop_than_it_drains(unit: configparser.ConfigParser) -> None:
    assert float(unit["Service"]["TimeoutStopSec"]) > FIELDS["drain_seconds"].default


def test_the_target_starts_and_stops_the_replicas(unit: configparser.ConfigParser) -> None:
    assert unit["Install"]["WantedBy"] == unit["Unit"]["PartOf"] == "lazyfx.target"
