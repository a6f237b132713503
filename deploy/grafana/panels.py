"""Panels as plain data, the PromQL that fills them, and their form in Grafana."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
SECONDS, BYTES, BYTES_PER_SECOND = "s", "bytes", "Bps"
COUNT, PER_SECOND, RATIO = "short", "cps", "percentunit"


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are called in the legend."""

    expression: str
    legend: str = ""


@dataclass(frozen=True)
class Panel:
    """One picture: a number over the whole time range, or curves along it."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    explanation: str = ""
    number: bool = False
    stacked: bool = False
    red_below_zero: bool = False


def number(title: str, unit: str, expression: str, explanation: str = "") -> Panel:
    """One number over the whole time range."""
    return Panel(title, unit, (Query(expression),), explanation, number=True)


def balance(title: str, unit: str, expression: str, explanation: str = "") -> Panel:
    """One number whose sign is the message."""
    return Panel(title, unit, (Query(expression),), explanation, number=True, red_below_zero=True)


def curves(title: str, unit: str, *queries: Query, explanation: str = "") -> Panel:
    """Curves that are compared with each other."""
    return Panel(title, unit, queries, explanation)


def stack(title: str, unit: str, *queries: Query, explanation: str = "") -> Panel:
    """Areas that add up to a whole."""
    return Panel(title, unit, queries, explanation, stacked=True)


def selected(metric: str, *matchers: str) -> str:
    """A selector of `metric` for the instances chosen at the top of the dashboard."""
    chosen = ", ".join(('instance=~"$instance"', *matchers))
    return f"{metric}{{{chosen}}}"


def gain(metric: str, *matchers: str) -> str:
    """What a counter gained over the dashboard's whole time range."""
    return f"sum(increase({selected(metric, *matchers)}[$__range]))"


def rate(metric: str, *matchers: str, by: str = "") -> str:
    """A counter's increase per second, summed by the given labels."""
    grouped = f"sum by ({by})" if by else "sum"
    return f"{grouped} (rate({selected(metric, *matchers)}[$__rate_interval]))"


def gauge(metric: str, by: str = "") -> str:
    """A gauge summed over the chosen instances."""
    return f"sum{f' by ({by})' if by else ''} ({selected(metric)})"


def ratio(part: str, whole: str) -> str:
    """One expression over another."""
    return f"{part} / {whole}"


def quantile(q: float, histogram: str, by: str = "") -> str:
    """A quantile of a histogram's recent observations."""
    buckets = rate(f"{histogram}_bucket", by=f"le, {by}" if by else "le")
    return f"histogram_quantile({q}, {buckets})"


def quantiles(histogram: str) -> tuple[Query, ...]:
    """The median, the slowest twentieth and the slowest hundredth of a histogram."""
    return tuple(Query(quantile(q, histogram), f"p{q * 100:.0f}") for q in (0.5, 0.95, 0.99))


def _thresholds(panel: Panel) -> dashboard.ThresholdsConfig:
    steps = [models.Threshold(value=None, color="green")]
    if panel.red_below_zero:
        steps = [
            models.Threshold(value=None, color="red"),
            models.Threshold(value=0, color="green"),
        ]
    return dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(steps)


def _number_panel() -> stat.Panel:
    reduced = common.ReduceDataOptions().calcs(["lastNotNull"])
    return stat.Panel().height(4).span(6).reduce_options(reduced)


def _curve_panel(stacked: bool) -> timeseries.Panel:
    legend = (
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    )
    built = timeseries.Panel().height(8).span(8).legend(legend)
    if not stacked:
        return built.fill_opacity(0)
    mode = common.StackingConfig().mode(common_models.StackingMode.NORMAL).group("A")
    return built.fill_opacity(20).stacking(mode)


def _built(panel: Panel, identity: int) -> stat.Panel | timeseries.Panel:
    built = _number_panel() if panel.number else _curve_panel(panel.stacked)
    built = built.id(identity).title(panel.title).description(panel.explanation)
    built = built.datasource(SOURCE).unit(panel.unit).thresholds(_thresholds(panel))
    for index, query in enumerate(panel.queries):
        target = prometheus.Dataquery().expr(query.expression).legend_format(query.legend)
        target = target.ref_id(chr(ord("A") + index)).format(PromQueryFormat.TIME_SERIES)
        built = built.with_target(target.instant() if panel.number else target.range())
    return built


def add_rows(board: dashboard.Dashboard, rows: Mapping[str, Sequence[Panel]]) -> None:
    """Lay rows of panels out below each other, numbered in reading order."""
    identity = 0
    for title, panels in rows.items():
        board.with_row(dashboard.Row(title).id(identity := identity + 1))
        for panel in panels:
            board.with_panel(_built(panel, identity := identity + 1))
