"""What the deployment's files say, read once."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def concrete(expression: str) -> str:
    """With Grafana's variables filled in: every instance, short windows."""
    filled = expression.replace("$instance", ".*")
    return filled.replace("$__rate_interval", "1m").replace("$__range", "5m")


def panels_of(dashboard: Path) -> Iterator[dict[str, Any]]:
    for panel in json.loads(dashboard.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", [])


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def panels() -> list[dict[str, Any]]:
    dashboards = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    return [panel for dashboard in dashboards for panel in panels_of(dashboard)]


@pytest.fixture(scope="session")
def dashboard_expressions(panels: list[dict[str, Any]]) -> dict[str, str]:
    """Each expression of the dashboards, ready to run, by where it is used."""
    return {
        f"{panel['title']} / {target['refId']}": concrete(target["expr"])
        for panel in panels
        for target in panel.get("targets", [])
    }


@pytest.fixture(scope="session")
def rules() -> list[dict[str, Any]]:
    files = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
    groups = [group for file in files for group in yaml.safe_load(file.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"]]


@pytest.fixture(scope="session")
def rule_expressions(rules: list[dict[str, Any]]) -> dict[str, str]:
    """Each expression of the recording and alerting rules by the rule's name."""
    return {rule.get("record") or rule["alert"]: rule["expr"] for rule in rules}


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """The path of a program: next to this Python first, because that one is pinned."""

    def find(name: str) -> str:
        pinned = Path(sys.executable).parent / name
        found = str(pinned) if pinned.exists() else shutil.which(name)
        if not found:
            pytest.skip(
                f"the program {name} is not on this machine; .ci/run installs what it needs"
            )
        return found

    return find
