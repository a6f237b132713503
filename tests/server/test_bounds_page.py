"""docs/bounds.md matches the settings; SECURITY.md refers to existing tests."""

from __future__ import annotations

import re
from pathlib import Path

from lazyfx_server.bounds_page import PAGE, page

ROOT = Path(__file__).parents[2]


def test_the_page_is_fresh() -> None:
    assert PAGE.read_text("utf-8") == page(), "run `make bounds`"


def test_every_test_of_the_threat_table_is_there() -> None:
    text = ROOT.joinpath("SECURITY.md").read_text("utf-8")
    table = text[text.index("| Threat |") :]
    rows = [line for line in table.split("\n\n")[0].splitlines()[2:] if line.startswith("|")]
    assert len(rows) > 20
    for row in rows:
        tests = row.split("|")[3]
        named = re.findall(r"`((?:[\w/]+/)?(?:test_\w+\.py|\w+/))`", tests)
        assert named, row
        for name in named:
            places = (ROOT / name, ROOT / "tests" / "hostile" / name)
            assert any(place.exists() for place in places), name
