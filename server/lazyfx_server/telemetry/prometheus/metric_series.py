"""Metrics of Prometheus with a bounded set of series, all of which exist from the start."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.metrics import MetricWrapperBase

from lazyfx_server.telemetry.labels import OTHER

M = TypeVar("M", bound=MetricWrapperBase)


class Family(Generic[M]):
    """A metric with all its series resolved: finding one is a dictionary lookup.

    Args:
        metric: The metric.
        labels: Its labels and the values that they take, apart from "other".
    """

    def __init__(self, metric: M, labels: Mapping[str, Sequence[str]]) -> None:
        self._known = [frozenset(values) for values in labels.values()]
        choices = [(*values, OTHER) for values in labels.values()]
        self._series: dict[tuple[str, ...], M] = {
            chosen: metric.labels(*chosen) if chosen else metric
            for chosen in itertools.product(*choices)
        }

    def of(self, values: tuple[str, ...]) -> M:
        """The series with these values of the labels; one that is not known is "other"."""
        series = self._series.get(values)
        if series is None:
            pairs = zip(values, self._known, strict=True)
            series = self._series[tuple(v if v in known else OTHER for v, known in pairs)]
        return series


class Maker:
    """Makes the metrics of one registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry

    def counter(
        self, name: str, meaning: str, labels: Mapping[str, Sequence[str]]
    ) -> Family[Counter]:
        """A counter; Prometheus adds "_total" to its name."""
        metric = Counter(f"lazyfx_{name}", meaning, list(labels), registry=self._registry)
        return Family(metric, labels)

    def histogram(
        self,
        name: str,
        meaning: str,
        labels: Mapping[str, Sequence[str]],
        buckets: Sequence[float],
    ) -> Family[Histogram]:
        """A histogram with these upper bounds of its buckets."""
        metric = Histogram(
            f"lazyfx_{name}", meaning, list(labels), registry=self._registry, buckets=buckets
        )
        return Family(metric, labels)
