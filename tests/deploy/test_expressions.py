"""Every expression of dashboards and rules parses and uses only metrics that lazyfx exports."""

from __future__ import annotations

from collections.abc import Mapping

import promql_parser
import pytest
from prometheus_client import CollectorRegistry

from lazyfx_server.metric_labels import label_values
from lazyfx_server.store.contract import StoreStats
from lazyfx_server.telemetry.gauges import DeviceMemory, Gauges
from lazyfx_server.telemetry.prometheus import PrometheusObserver, export_levels

Series = Mapping[str, frozenset[str]]

# What Prometheus itself adds to every series that it scrapes.
SCRAPED = frozenset({"job", "instance"})


@pytest.fixture(scope="module")
def exported() -> Series:
    """Labels of each series of a server with a GPU and an upstream, by the series' name."""
    registry = CollectorRegistry()
    tier = StoreStats(entries=1, bytes=1, limit_bytes=2, evictions=0)
    gauges = Gauges(
        store=lambda: {"memory": tier, "disk": tier},
        devices=lambda: [DeviceMemory("cuda:0", 2, 1)],
        upstream_in_use=lambda: True,
        engine=lambda: {"connected": 1, "nodes": 1, "refused": 0},
    )
    given = label_values(["a"])
    PrometheusObserver(registry, given, {"version": "1", "torch": "2", "python": "3"})
    export_levels(registry, gauges, given)
    return {
        sample.name: frozenset(sample.labels) | SCRAPED
        for family in registry.collect()
        for sample in family.samples
    }


def selectors_of(expression: str) -> list[promql_parser.VectorSelector]:
    """The selectors of an expression. Raises ValueError if it does not parse."""
    found: list[promql_parser.VectorSelector] = []

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def faults(expression: str, exported: Series) -> list[str]:
    """What an expression names that no server exports; it must read something at all."""
    wrong = []
    reads = [selector.name or "" for selector in selectors_of(expression)]
    if not reads:
        wrong.append("reads nothing")
    wrong += [f"no series {name}" for name in reads if name not in exported]
    for selector in selectors_of(expression):
        labels = exported.get(selector.name or "", frozenset())
        wrong += [
            f"{selector.name} has no label {matcher.name}"
            for matcher in selector.matchers.matchers
            if matcher.name not in labels
        ]

    def visit(node: promql_parser.Expr) -> None:
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            for selector in selectors_of(node.expr.prettify()):
                labels = exported.get(selector.name or "", frozenset())
                wrong.extend(
                    f"{selector.name} is grouped by {label}, which it has not"
                    for label in node.modifier.labels
                    if label not in labels
                )

    promql_parser.walk(promql_parser.parse(expression), visit)
    return wrong


def test_dashboards_name_series_and_labels_that_exist(
    dashboard_expressions: dict[str, str], exported: Series
) -> None:
    assert dashboard_expressions
    found = {place: faults(text, exported) for place, text in dashboard_expressions.items()}
    assert {place: wrong for place, wrong in found.items() if wrong} == {}


def test_rules_name_series_and_labels_that_exist(
    rule_expressions: dict[str, str], exported: Series
) -> None:
    assert rule_expressions
    records = {name: SCRAPED for name in rule_expressions if ":" in name}
    known = {**exported, "up": SCRAPED, **records}
    found = {name: faults(text, known) for name, text in rule_expressions.items()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_every_metric_is_drawn_somewhere(
    dashboard_expressions: dict[str, str], exported: Series
) -> None:
    drawn = {
        selector.name
        for expression in dashboard_expressions.values()
        for selector in selectors_of(expression)
    }
    # Any series of a histogram stands for it.
    suffixes = ("_bucket", "_sum", "_count")
    families = {
        name: {name, *(stem + end for end in suffixes)}
        for name in exported
        if name.startswith("lazyfx_")
        for stem in [name.removesuffix("_bucket").removesuffix("_sum").removesuffix("_count")]
    }
    assert sorted(name for name, family in families.items() if not family & drawn) == []


def test_a_wrong_name_would_be_found(exported: Series) -> None:
    assert faults("sum by (pass) (rate(lazyfx_pass_seconds_sum[5m]))", exported) == []
    assert faults("sum(lazyfx_no_such_thing)", exported) == ["no series lazyfx_no_such_thing"]
    assert faults('lazyfx_lookups_total{kind="x"}', exported) == [
        "lazyfx_lookups_total has no label kind"
    ]
    assert faults("sum by (tier) (lazyfx_lookups_total)", exported) == [
        "lazyfx_lookups_total is grouped by tier, which it has not"
    ]
