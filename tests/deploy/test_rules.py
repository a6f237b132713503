"""promtool accepts the configuration and runs the tests of the alerts."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any


def promtool(tool: Callable[[str], str], root: Path, *arguments: str) -> None:
    command = [tool("promtool"), *arguments]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


def test_the_configuration_and_its_rules_are_valid(root: Path, tool: Callable[[str], str]) -> None:
    promtool(tool, root, "check", "config", "deploy/prometheus/prometheus.yml")


def test_alerts_fire_and_stay_quiet_as_specified(root: Path, tool: Callable[[str], str]) -> None:
    promtool(tool, root, "test", "rules", "tests/deploy/alerts_test.yml")


def test_every_alert_says_how_urgent_it_is_and_what_is_wrong(rules: list[dict[str, Any]]) -> None:
    for rule in rules:
        if "alert" in rule:
            assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
            assert rule["annotations"]["summary"], rule["alert"]
