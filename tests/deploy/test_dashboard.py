"""The committed dashboard is the output of its script, and readable."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def test_is_what_the_script_makes(root: Path) -> None:
    pytest.importorskip(
        "grafana_foundation_sdk", reason="grafana-foundation-sdk needs Python 3.11 or newer"
    )
    script = root / "deploy/grafana/savings.py"
    result = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def test_has_the_rows_that_the_story_needs(panels: list[dict[str, Any]]) -> None:
    rows = [panel["title"] for panel in panels if panel["type"] == "row"]
    assert rows == [
        "Saved", "Cache", "Passes", "Rendering", "Store", "Upstream", "Workers",
        "Requests", "GPUs",
    ]  # fmt: skip


def test_every_panel_has_its_own_number_and_place(panels: list[dict[str, Any]]) -> None:
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: dict[tuple[int, int], str] = {}
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24, panel["title"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                other = taken.setdefault((x, y), panel["title"])
                assert other == panel["title"], f"{panel['title']} lies on {other}"


def test_every_panel_asks_something_of_the_chosen_source(panels: list[dict[str, Any]]) -> None:
    for panel in panels:
        if panel["type"] != "row":
            assert panel["targets"], panel["title"]
            assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
            assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
