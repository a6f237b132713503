"""A real Prometheus scrapes a loaded server, and every expression finds its data there."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import lazyfx
from lazyfx.errors import InvalidRequestError

pytestmark = pytest.mark.skipif(
    shutil.which("prometheus") is None,
    reason="the prometheus program is not installed (Debian: apt-get install prometheus)",
)

PATIENCE = 60.0
# Everything is on this machine, whatever proxy the environment names.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Prometheus:
    """The HTTP API of a Prometheus on this machine."""

    def __init__(self, url: str) -> None:
        self.url = url

    def get(self, path: str, **parameters: str) -> Any:
        query = urllib.parse.urlencode(parameters)
        with DIRECT.open(f"{self.url}{path}?{query}", timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def values(self, expression: str) -> list[float]:
        """Values of an instant query, one for each series."""
        result = self.get("/api/v1/query", query=expression)["result"]
        return [float(series["value"][1]) for series in result]

    def number(self, expression: str) -> float:
        [value] = self.values(expression)
        return value

    def is_ready(self) -> bool:
        try:
            with DIRECT.open(f"{self.url}/-/ready", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def until(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"still waiting for: {what}"
        time.sleep(0.2)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def prometheus(root: Path, tmp_path: Path, server: Any) -> Iterator[Prometheus]:
    """Prometheus with the deployment's rules, scraping the test's server each second."""
    scraped = urllib.parse.urlsplit(server.metrics_url)
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    config["rule_files"] = [
        str(root / "deploy/prometheus" / files) for files in config["rule_files"]
    ]
    config["scrape_configs"] = [
        {"job_name": job["job_name"], "static_configs": [{"targets": [scraped.netloc]}]}
        for job in config["scrape_configs"]
        if job["job_name"] == "lazyfx"
    ]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    command = [
        "prometheus",
        f"--config.file={tmp_path / 'prometheus.yml'}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = tmp_path / "prometheus.log"
    environment = os.environ | {"GOMAXPROCS": "1"}
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        client = Prometheus(f"http://{address}")
        until(lambda: client.is_ready() or process.poll() is not None, "Prometheus to be ready")
        assert process.poll() is None, log.read_text()
        yield client
    finally:
        process.terminate()
        process.wait(timeout=20)


class Block(torch.nn.Module):
    """A graph in which common subexpressions, dead code and dropout can be found."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(width, width)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        unused = x * 3  # noqa: F841 - dead code for a pass to remove
        return self.dropout(torch.relu(self.linear(x)) + torch.relu(self.linear(x)))


def load(address: str, folder: Path, widths: range) -> None:
    """Misses, hits, every kind of artifact, and a mistake."""
    passes = ["dead_code_elimination", "common_subexpression_elimination", "remove_dropout"]
    with lazyfx.connect(address) as client:
        for width in widths:
            graph = torch.fx.symbolic_trace(Block(width).eval())
            module = client.compile(graph, passes=passes)
            assert module.code
            module.save_pickle(folder / f"{width}.pickle")
            module.save_package(folder / f"{width}.package")
            module.picture()
            again = client.compile(graph, passes=passes)
            assert again.cache.status == "hit"
            assert again.code == module.code
        with pytest.raises(InvalidRequestError):
            client.compile(graph, passes=["no_such_pass"])


def scrapes(prometheus: Prometheus) -> float:
    return sum(prometheus.values('count_over_time(up{job="lazyfx"}[10m])'))


def test_every_expression_finds_its_data(
    prometheus: Prometheus,
    server: Any,
    tmp_path: Path,
    dashboard_expressions: dict[str, str],
    rule_expressions: dict[str, str],
) -> None:
    # A counter must be seen before and after it moves for its rate to be more than zero.
    load(server.address, tmp_path, range(2, 4))
    before = scrapes(prometheus)
    until(lambda: scrapes(prometheus) >= before + 2, "a first look at the counters")
    load(server.address, tmp_path, range(4, 8))
    before = scrapes(prometheus)
    until(lambda: scrapes(prometheus) >= before + 3, "a second look at the counters")

    found = {place: prometheus.values(text) for place, text in dashboard_expressions.items()}

    on_devices = {
        place for place, text in dashboard_expressions.items() if "lazyfx_device_memory" in text
    }
    has_devices = bool(prometheus.values("lazyfx_device_memory_total_bytes"))
    empty = {place for place, values in found.items() if not values}
    # Only servers with an engine, or with an upstream, have these.
    of_others = {
        place
        for place, text in dashboard_expressions.items()
        if "lazyfx_engine" in text or "lazyfx_upstream_in_use" in text
    }
    assert empty == of_others | (set() if has_devices else on_devices - {"Devices / A"})

    # Where the load went, there are numbers and not merely series.
    [asked], [done], [saved] = (
        found[f"Recompiles {what} / A"] for what in ("asked", "done", "saved")
    )
    assert asked > 0
    assert done > 0
    assert saved > 0
    [net], [gained], [reused], [overhead] = (
        found[f"{what} seconds / A"] for what in ("Net", "Saved", "Reused", "Overhead")
    )
    assert reused > 0
    assert overhead > 0
    # Read a moment apart, between scrapes or across one.
    assert math.isclose(net, gained + reused - overhead, rel_tol=0.2, abs_tol=0.1)
    [ratio] = found["Hit ratio / A"]
    assert 0 < ratio < 1
    assert not any(math.isnan(value) for value in found["Latency / B"] + found["Compile time / B"])

    # The rules run there too: none fails, and each record holds something.
    groups = prometheus.get("/api/v1/rules")["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == set(rule_expressions)
    assert {rule["name"]: rule["lastError"] for rule in rules if rule.get("lastError")} == {}
    assert {rule["health"] for rule in rules} == {"ok"}
    for rule in rules:
        if rule["type"] == "recording":
            assert prometheus.values(rule["name"]), rule["name"]
    firing = {rule["name"] for rule in rules if rule.get("state") == "firing"}
    assert firing == set()
