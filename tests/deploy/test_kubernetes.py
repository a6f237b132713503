"""The Kubernetes manifests, as kustomize renders them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from lazyfx_server.settings.loading import load

TARGETS = [
    "base",
    "overlays/cuda",
    "overlays/identified",
    "overlays/native",
    "overlays/service-monitor",
]
# Kinds that a cluster learns from an operator; Kubernetes' own schemas do not know them.
CUSTOM = {"ServiceMonitor"}
Rendered = Callable[[str], dict[tuple[str, str], dict[str, Any]]]


@pytest.fixture(scope="module")
def rendered(root: Path, tool: Callable[[str], str]) -> Rendered:
    """Objects of a kustomization by (kind, name)."""

    def render(target: str) -> dict[tuple[str, str], dict[str, Any]]:
        command = [tool("kubectl"), "kustomize", str(root / "deploy/kubernetes" / target)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        assert result.returncode == 0, result.stderr
        objects = list(yaml.safe_load_all(result.stdout))
        return {(item["kind"], item["metadata"]["name"]): item for item in objects}

    return render


@pytest.fixture
def pod(rendered: Rendered) -> dict[str, Any]:
    spec: dict[str, Any] = rendered("base")["StatefulSet", "lazyfx"]["spec"]["template"]["spec"]
    return spec


@pytest.fixture
def container(pod: dict[str, Any]) -> dict[str, Any]:
    first: dict[str, Any] = pod["containers"][0]
    return first


@pytest.mark.parametrize("target", TARGETS)
def test_follows_the_schemas(rendered: Rendered, target: str) -> None:
    for (kind, _), item in rendered(target).items():
        if kind not in CUSTOM:
            kubernetes_validate.validate(item, kubernetes_validate.latest_version(), strict=True)


@pytest.mark.parametrize("target", TARGETS)
def test_selectors_find_the_pods(rendered: Rendered, target: str) -> None:
    objects = rendered(target)
    stateful = objects["StatefulSet", "lazyfx"]["spec"]
    labels = stateful["template"]["metadata"]["labels"].items()
    assert stateful["selector"]["matchLabels"].items() <= labels
    for name in ("lazyfx", "lazyfx-headless"):
        assert objects["Service", name]["spec"]["selector"].items() <= labels
    budget = objects["PodDisruptionBudget", "lazyfx"]["spec"]
    assert budget["selector"]["matchLabels"].items() <= labels
    policy = objects["NetworkPolicy", "lazyfx"]["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels


def test_the_headless_service_is_the_one_of_the_replicas(rendered: Rendered) -> None:
    objects = rendered("base")
    name = objects["StatefulSet", "lazyfx"]["spec"]["serviceName"]
    assert objects["Service", name]["spec"]["clusterIP"] == "None"


def test_probes_ask_the_right_doors(container: dict[str, Any]) -> None:
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8700, "metrics": 8701}
    assert container["startupProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    assert container["readinessProbe"]["grpc"] == {"port": ports["grpc"]}


def test_nothing_runs_as_root_or_writes_to_the_image(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    security = container["securityContext"]
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert security["capabilities"] == {"drop": ["ALL"]}


def test_the_user_is_that_of_the_image(root: Path, pod: dict[str, Any]) -> None:
    context = pod["securityContext"]
    user = f"USER {context['runAsUser']}:{context['runAsGroup']}\n"
    assert user in (root / "Dockerfile").read_text()
    assert context["fsGroup"] == context["runAsGroup"]


def test_everything_the_server_writes_has_a_volume(
    pod: dict[str, Any], container: dict[str, Any], rendered: Rendered
) -> None:
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(mounts) == {"/var/lib/lazyfx", "/tmp", "/dev/shm"}
    claims = rendered("base")["StatefulSet", "lazyfx"]["spec"]["volumeClaimTemplates"]
    volumes = {item["metadata"]["name"] for item in claims} | {v["name"] for v in pod["volumes"]}
    assert set(mounts.values()) == volumes


def test_the_drain_fits_into_the_grace_period(
    pod: dict[str, Any], container: dict[str, Any]
) -> None:
    environment = {variable["name"]: variable["value"] for variable in container["env"]}
    assert float(environment["LAZYFX_DRAIN_SECONDS"]) < pod["terminationGracePeriodSeconds"]
    assert "lifecycle" not in container


def test_service_variables_do_not_look_like_settings(pod: dict[str, Any]) -> None:
    # A Service called lazyfx would give every pod LAZYFX_PORT, LAZYFX_SERVICE_HOST, ...
    assert pod["enableServiceLinks"] is False


def test_the_network_lets_in_marked_clients_and_prometheus_only(rendered: Rendered) -> None:
    policy = rendered("base")["NetworkPolicy", "lazyfx"]["spec"]
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert policy["egress"] == []
    doors = {rule["ports"][0]["port"]: rule["from"] for rule in policy["ingress"]}
    assert doors == {
        "grpc": [{"podSelector": {"matchLabels": {"lazyfx.dev/client": "true"}}}],
        "metrics": [
            {
                "namespaceSelector": {},
                "podSelector": {"matchLabels": {"app.kubernetes.io/name": "prometheus"}},
            }
        ],
    }


def test_prometheus_finds_the_metrics(rendered: Rendered) -> None:
    objects = rendered("overlays/service-monitor")
    template = objects["StatefulSet", "lazyfx"]["spec"]["template"]["metadata"]
    assert template["annotations"]["prometheus.io/port"] == "8701"
    monitor = objects["ServiceMonitor", "lazyfx"]["spec"]
    service = objects["Service", "lazyfx"]
    assert monitor["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    ports = {port["name"] for port in service["spec"]["ports"]}
    assert {endpoint["port"] for endpoint in monitor["endpoints"]} <= ports
    # The alert on a server that is down names the job.
    assert service["metadata"]["labels"][monitor["jobLabel"]] == "lazyfx"


def test_the_cuda_overlay_asks_for_a_gpu_and_its_image(rendered: Rendered) -> None:
    spec = rendered("overlays/cuda")["StatefulSet", "lazyfx"]["spec"]["template"]["spec"]
    server = spec["containers"][0]
    assert server["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert server["image"].endswith("-cuda")
    assert spec["tolerations"][0]["key"] == "nvidia.com/gpu"


def test_the_identified_overlay_asks_for_tokens_over_tls(
    rendered: Rendered, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered("overlays/identified")
    spec = objects["StatefulSet", "lazyfx"]["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    environment = {variable["name"]: variable["value"] for variable in server["env"]}
    secrets = {v["name"]: v["secret"] for v in spec["volumes"] if "secret" in v}
    mounts = {m["name"]: m["mountPath"] for m in server["volumeMounts"] if m["name"] in secrets}
    for name in ("LAZYFX_SERVER_CERTIFICATE", "LAZYFX_SERVER_KEY", "LAZYFX_TOKENS"):
        assert str(Path(environment[name]).parent) in mounts.values()
    assert {secret["defaultMode"] for secret in secrets.values()} == {0o440}
    # The settings that these variables make need no confirmation.
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load(["--listen", "0.0.0.0:8700"])
    assert not settings.addresses.insecure
    assert settings.exposure is None
    # Probes of Kubernetes do not speak TLS to gRPC.
    assert server["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "metrics"}
    for name in ("lazyfx", "lazyfx-headless"):
        assert "appProtocol" not in objects["Service", name]["spec"]["ports"][0]


def test_your_word_is_never_asked_for_without_the_words_beside_it(root: Path) -> None:
    for path in (root / "deploy").rglob("*.yaml"):
        lines = path.read_text().splitlines()
        for number, line in enumerate(lines):
            if "LAZYFX_INSECURE" in line and not line.lstrip().startswith("#"):
                value = line + (lines[number + 1] if "name:" in line else "")
                if "true" in value:
                    above = " ".join(lines[max(0, number - 5) : number])
                    assert "asserts that the network itself is closed" in above, path
                    assert "identified" in above, path


def test_the_native_overlay_asks_for_an_image_with_a_compiler(
    root: Path, rendered: Rendered
) -> None:
    spec = rendered("overlays/native")["StatefulSet", "lazyfx"]["spec"]["template"]["spec"]
    (server,) = spec["containers"]
    environment = {variable["name"]: variable["value"] for variable in server["env"]}
    assert load(["--native", environment["LAZYFX_NATIVE"]]).native.native == "on"
    assert server["image"].endswith("-native")
    assert "ARG NATIVE" in (root / "Dockerfile").read_text()
    scratch = {v["name"]: v["emptyDir"].get("sizeLimit") for v in spec["volumes"]}
    assert scratch["tmp"] == "6Gi"


def test_the_example_of_a_tier_opens_no_port_of_its_node_and_has_probes(root: Path) -> None:
    text = (root / "docs/tiers.md").read_text()
    example = yaml.safe_load(text.partition("```yaml\n")[2].partition("```")[0])
    kubernetes_validate.validate(example, kubernetes_validate.latest_version(), strict=True)
    container = example["spec"]["template"]["spec"]["containers"][0]
    settings = load(container["args"][1:])
    assert settings.addresses.listen.startswith("127.0.0.1:")
    assert settings.addresses.metrics_host == "127.0.0.1"
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[probe]["httpGet"]
        assert (asked["host"], asked["port"]) == ("127.0.0.1", settings.addresses.metrics_port)
