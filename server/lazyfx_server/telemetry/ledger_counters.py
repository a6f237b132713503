"""The counters that are also kept in the ledger, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lazyfx_server.telemetry import counting
from lazyfx_server.telemetry.labels import LOOKUP_RESULTS, OVERHEAD_STAGES, DefinedElsewhere


@dataclass(frozen=True, slots=True)
class LedgerCounter:
    """A Prometheus counter for one count of `counting`.

    Attributes:
        count: Name of the count.
        metric: Name of the metric, without prefix and suffix.
        meaning: What it counts.
        labels: Its labels and their values, in the order of the count's labels.
        only: Include only counts with this label.
    """

    count: str
    metric: str
    meaning: str
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    only: str = ""

    def includes(self, key: counting.Key) -> bool:
        """Whether a count is included."""
        return not self.only or self.only in key

    def values(self, key: counting.Key) -> tuple[str, ...]:
        """The values of the labels for a count."""
        return key[1:] if self.labels else ()


def ledger_counters(passes: Sequence[str], given: DefinedElsewhere) -> list[LedgerCounter]:
    """The counters of a server.

    Args:
        passes: The values of the label "pass".
        given: Values of labels that other packages define.
    """
    saved = "Estimated seconds of code generation saved by laziness"
    by_pass = {"pass": passes}
    return [
        LedgerCounter(counting.REQUESTED, "recompiles_requested", "Calls of recompile()", by_pass),
        LedgerCounter(
            counting.PERFORMED,
            "recompiles_performed",
            "Generations of Python code",
            {**by_pass, "trigger": given.triggers},
        ),
        LedgerCounter(
            counting.SAVED,
            "recompiles_saved",
            "Calls of recompile() that generated nothing",
            by_pass,
        ),
        LedgerCounter(counting.SAVED_SECONDS, "saved_seconds", saved),
        LedgerCounter(
            counting.SAVED_SECONDS,
            "saved_seconds_measured",
            f"{saved}, by the measured cost of the same graph",
            only=counting.MEASURED,
        ),
        LedgerCounter(
            counting.PERFORMED_SECONDS, "performed_seconds", "Measured seconds of code generation"
        ),
        LedgerCounter(
            counting.REUSED_SECONDS,
            "reused_seconds",
            "Measured seconds of compiles that hits and joins saved",
        ),
        LedgerCounter(
            counting.OVERHEAD_SECONDS,
            "overhead_seconds",
            "Seconds of the service's own overhead",
            {"stage": OVERHEAD_STAGES},
        ),
        LedgerCounter(
            counting.LOOKUPS,
            "lookups",
            "Compile requests by result",
            {"result": LOOKUP_RESULTS},
        ),
        LedgerCounter(
            counting.MISSES, "misses", "Misses by reason", {"reason": given.miss_reasons}
        ),
    ]
