"""The refusals of entries in torch's databases that docs/coverage.md lists."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.run import Finding

PAGE = Path(__file__).parents[1] / "docs" / "coverage.md"
_HEADING = "## Entries of torch's databases that are refused"


@dataclass(frozen=True)
class Reason:
    """A row of the table in the page.

    Attributes:
        names: Patterns of names of cases, with `*` for anything.
        ways: Captures in which they are refused.
        words: Text that the error contains.
    """

    names: tuple[str, ...]
    ways: tuple[str, ...]
    words: str

    def explains(self, finding: Finding) -> bool:
        """Whether this is the reason for a finding."""
        return (
            finding.outcome == "refused"
            and finding.way in self.ways
            and self.words in finding.note
            and any(fnmatch.fnmatchcase(finding.case, name) for name in self.names)
        )


def read(page: Path = PAGE) -> list[Reason]:
    """The rows of the page's table: cases | captures | words of the error | why."""
    text = page.read_text(encoding="utf-8").partition(_HEADING)[2].partition("\n## ")[0]
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [_reason(row) for row in rows]


def unexplained(found: Iterable[Finding], reasons: Sequence[Reason]) -> list[Finding]:
    """Refusals that no row explains."""
    return [
        each
        for each in found
        if each.outcome == "refused" and not any(reason.explains(each) for reason in reasons)
    ]


def outdated(found: Sequence[Finding], reasons: Sequence[Reason]) -> list[Reason]:
    """Rows that are not needed, after both databases ran completely."""
    return [reason for reason in reasons if not any(map(reason.explains, found))]


def _reason(row: str) -> Reason:
    names, ways, words, _why = (cell.strip() for cell in row.strip("| ").split(" | "))
    quoted = re.compile(r"`([^`]+)`")
    return Reason(tuple(quoted.findall(names)), tuple(quoted.findall(ways)), words.strip("`"))
