"""The Dockerfile: lint, and properties that a linter does not check."""

from __future__ import annotations

import http.server
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.settings.model import FIELDS


@pytest.fixture(scope="module")
def instructions(root: Path) -> list[tuple[str, str]]:
    """(keyword, rest) of each instruction, continuation lines joined."""
    joined = (root / "Dockerfile").read_text().replace("\\\n", " ")
    lines = [line for line in joined.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


@pytest.fixture(scope="module")
def runtime(instructions: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """The instructions of the last stage."""
    last = max(i for i, (keyword, _) in enumerate(instructions) if keyword == "FROM")
    return instructions[last:]


def test_hadolint_finds_nothing(root: Path, tool: Callable[[str], str]) -> None:
    command = [tool("hadolint"), "--no-color", "Dockerfile"]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


def test_runs_as_a_fixed_number_that_is_not_root(runtime: list[tuple[str, str]]) -> None:
    user = [rest for keyword, rest in runtime if keyword == "USER"][-1]
    uid, gid = (int(part) for part in user.split(":"))
    assert uid > 0
    assert gid > 0


def test_an_image_that_makes_native_artifacts_has_a_compiler(
    runtime: list[tuple[str, str]],
) -> None:
    assert ("ARG", "NATIVE=") in runtime
    installs = [rest for keyword, rest in runtime if keyword == "RUN" and "${NATIVE}" in rest]
    assert len(installs) == 1
    assert "g++" in installs[0]
    assert "Python.h" in installs[0]
    # What is not built for it does not offer it.
    assert not any("LAZYFX_NATIVE" in rest for keyword, rest in runtime if keyword == "ENV")


def test_the_server_is_process_one(runtime: list[tuple[str, str]]) -> None:
    words = dict(runtime)
    assert json.loads(words["ENTRYPOINT"]) + json.loads(words["CMD"]) == ["lazyfx", "serve"]
    assert words["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False), (None, False)])
def test_health_is_asked_with_what_the_image_has(
    runtime: list[tuple[str, str]], status: int | None, healthy: bool
) -> None:
    check = next(rest for keyword, rest in runtime if keyword == "HEALTHCHECK")
    program, *arguments = json.loads(check.split("CMD", 1)[1])
    assert program == "python3"
    asked = []

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(status or 0)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        port = server.server_port
        if status:
            threading.Thread(target=server.handle_request, daemon=True).start()
        else:
            server.server_close()
        # A proxy in the container's environment must not be asked for the container itself.
        environment = os.environ | {
            "LAZYFX_METRICS_PORT": str(port),
            "http_proxy": "http://192.0.2.1:9",
        }
        result = subprocess.run(
            [sys.executable, *arguments], env=environment, capture_output=True, check=False
        )
    assert (result.returncode == 0) is healthy
    assert asked == (["/readyz"] if status else [])


def test_only_the_virtual_environment_leaves_the_builder(runtime: list[tuple[str, str]]) -> None:
    copies = [rest for keyword, rest in runtime if keyword in ("COPY", "ADD")]
    assert copies == ["--from=builder /opt/lazyfx /opt/lazyfx"]


def test_every_copied_path_passes_the_ignore_file(
    root: Path, instructions: list[tuple[str, str]]
) -> None:
    allowed = {
        line[1:]
        for line in (root / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    copied = {
        source
        for keyword, rest in instructions
        if keyword == "COPY" and not rest.startswith("--from")
        for source in rest.split()[:-1]
    }
    assert copied == allowed
    assert all((root / path).exists() for path in copied)


def test_every_setting_named_in_a_deployment_exists(root: Path) -> None:
    files = [root / "Dockerfile", *(root / "deploy").rglob("*.y*ml")]
    # BASE, TORCH_INDEX and CUDA_BASE are inputs of the build, not of the server.
    build_inputs = {"base", "torch_index", "cuda_base"}
    # The ports that compose publishes.
    of_compose = {"ports"}
    # What comments tell clients to set.
    of_clients = {"address", "ca", "token", "verify_keys"}
    named = {
        name.lower()
        for file in files
        for name in re.findall(r"\bLAZYFX_([A-Z_]+)", file.read_text())
    }
    assert named - build_inputs - of_compose - of_clients <= set(FIELDS)
    assert {"listen", "store_path", "metrics_host"} <= named


def test_the_version_is_that_of_the_package(root: Path) -> None:
    version = re.search(r'^version = "(.+)"', (root / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"ARG VERSION={version[1]}\n" in (root / "Dockerfile").read_text()
    for kustomization in (root / "deploy/kubernetes").rglob("kustomization.yaml"):
        for tag in re.findall(r'newTag: "(.+)"', kustomization.read_text()):
            assert tag.startswith(version[1])
