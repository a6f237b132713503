"""The compose files: valid by the Compose Specification, and closed by default."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import compose_spec
import pytest
import yaml


@pytest.fixture(scope="module")
def compose(root: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((root / "deploy/compose/compose.yaml").read_text())
    return loaded


@pytest.mark.parametrize(
    "name", ["compose.yaml", "cuda.yaml", "identified.yaml", "native.yaml", "replicas.yaml"]
)
def test_follows_the_specification(root: Path, name: str) -> None:
    text = (root / "deploy/compose" / name).read_text()
    # As Compose reads it where none of the variables is set.
    text = re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", text)
    compose_spec.PyCompose.from_yaml(text).validate()


def test_ports_are_published_on_loopback_only(compose: dict[str, Any]) -> None:
    published = [
        port for service in compose["services"].values() for port in service.get("ports", [])
    ]
    assert sorted(published) == ["127.0.0.1:${LAZYFX_PORTS:-8700}:8700", "127.0.0.1:3000:3000"]


def test_every_service_is_read_only_and_without_privileges(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name


def test_every_service_has_a_healthcheck_and_waits_for_its_needs(compose: dict[str, Any]) -> None:
    services = compose["services"]
    # The server's own comes with the image.
    assert all("healthcheck" in services[name] for name in ("prometheus", "grafana"))
    assert services["prometheus"]["depends_on"]["lazyfx"]["condition"] == "service_healthy"
    assert services["grafana"]["depends_on"]["prometheus"]["condition"] == "service_healthy"


def test_every_mounted_file_exists(root: Path, compose: dict[str, Any]) -> None:
    here = root / "deploy/compose"
    named = set(compose["volumes"])
    for service in compose["services"].values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert source in named or (here / source).is_dir(), volume
    assert (here / compose["services"]["lazyfx"]["build"]["context"] / "Dockerfile").is_file()


def test_grafana_is_provisioned_with_the_dashboard(root: Path, compose: dict[str, Any]) -> None:
    provisioning = root / "deploy/grafana/provisioning"
    grafana = compose["services"]["grafana"]
    mounts = dict(volume.split(":")[:2] for volume in grafana["volumes"])
    sources = yaml.safe_load((provisioning / "datasources/lazyfx.yml").read_text())
    assert sources["datasources"][0]["url"] == "http://prometheus:9090"
    boards = yaml.safe_load((provisioning / "dashboards/lazyfx.yml").read_text())
    assert boards["providers"][0]["options"]["path"] == mounts["../grafana/dashboards"]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == mounts["../grafana/dashboards"]
    assert json.loads((root / "deploy/grafana/dashboards" / home.name).read_text())["uid"]


def test_prometheus_scrapes_the_metrics_port_of_the_server(
    root: Path, compose: dict[str, Any]
) -> None:
    config = yaml.safe_load((root / "deploy/prometheus/prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    # Each replica has an address of its own behind the name of the service.
    (found,) = jobs["lazyfx"]["dns_sd_configs"]
    assert found == {"names": ["lazyfx"], "type": "A", "port": 8701}
    assert "lazyfx" in compose["services"]
    networks = compose["services"]
    assert set(networks["lazyfx"]["networks"]) & set(networks["prometheus"]["networks"])


def test_the_server_gets_longer_to_stop_than_it_drains(compose: dict[str, Any]) -> None:
    from lazyfx_server.settings.model import FIELDS

    grace = compose["services"]["lazyfx"]["stop_grace_period"]
    assert float(grace.removesuffix("s")) > FIELDS["drain_seconds"].default


def test_the_identified_file_asks_for_tokens_over_tls(root: Path) -> None:
    added = yaml.safe_load((root / "deploy/compose/identified.yaml").read_text())
    server = added["services"]["lazyfx"]
    files = {f"/run/secrets/{name}" for name in server["secrets"]}
    assert set(added["secrets"]) == set(server["secrets"])
    named = {name: value for name, value in server["environment"].items() if value in files}
    assert set(named) == {"LAZYFX_SERVER_CERTIFICATE", "LAZYFX_SERVER_KEY", "LAZYFX_TOKENS"}
    assert server["environment"]["LAZYFX_INSECURE"] == "false"


def test_the_replicas_share_a_store_that_nobody_else_reaches(
    root: Path, compose: dict[str, Any]
) -> None:
    added = yaml.safe_load((root / "deploy/compose/replicas.yaml").read_text())
    server, valkey = added["services"]["lazyfx"], added["services"]["valkey"]
    assert server["environment"]["LAZYFX_STORE"] == "redis://valkey:6379/0"
    assert server["depends_on"]["valkey"]["condition"] == "service_healthy"
    assert server["networks"] == valkey["networks"] == ["store"]
    assert added["networks"]["store"]["internal"] is True
    assert "ports" not in valkey
    assert "store:/var/lib/lazyfx" in compose["services"]["lazyfx"]["volumes"]
    assert valkey["read_only"] is True
    assert valkey["cap_drop"] == ["ALL"]
    assert valkey["user"].split(":")[0] not in {"0", "root"}
    assert "container_name" not in compose["services"]["lazyfx"]  # it would forbid --scale


def test_the_native_file_has_a_compiler_and_may_load_what_it_made(root: Path) -> None:
    added = yaml.safe_load((root / "deploy/compose/native.yaml").read_text())
    server = added["services"]["lazyfx"]
    assert server["build"]["args"]["NATIVE"] == "1"
    assert server["environment"]["LAZYFX_NATIVE"] == "on"
    (scratch,) = server["tmpfs"]
    assert scratch.startswith(server["environment"]["TMPDIR"] + ":")
    assert "exec" in scratch.split(",")
