"""A server that cannot build the native artifacts that it is configured for says so."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from harness import connected, metrics, total

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.settings.loading import load
from lazyfx_server.workers import pools

if TYPE_CHECKING:
    from servers import RunningServer

Launch = Callable[..., "RunningServer"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ([], "off"), (["--native"], "on"), (["--native", "--workers", "1"], "on"),
        (["--native", "optional"], "optional"), (["--native=optional"], "optional"),
        (["--native", "on"], "on"), (["--no-native"], "off"), (["--native", "false"], "off"),
    ],
)  # fmt: skip
def test_native_was_a_switch_and_still_is_one(given: list[str], meant: str) -> None:
    assert load(given).native.native == meant


@pytest.mark.parametrize(
    ("value", "meant"),
    [("true", "on"), ("1", "on"), ("0", "off"), ("False", "off"), ("optional", "optional")],
)
def test_native_in_the_environment(value: str, meant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFX_NATIVE", value)
    assert load([]).native.native == meant


def broken_compiler(folder: Path) -> str:
    path = folder / "g++"
    path.write_text("#!/bin/sh\nexit 1\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("compiler", ["none", "broken"])
def test_without_a_compiler_it_does_not_start_and_says_why(
    launch: Launch, tmp_path: Path, compiler: str
) -> None:
    name = "g++-that-is-not-there" if compiler == "none" else broken_compiler(tmp_path)
    with pytest.raises(RuntimeError) as failure:
        launch("--native", "--workers", "1", environment={"CXX": name}, kind="server")
    text = str(failure.value)
    assert "lazyfx serve: --native: " in text
    assert "install g++" in text
    assert "Traceback" not in text


def test_optional_starts_and_says_why_there_are_none(launch: Launch) -> None:
    flags = ("--native", "optional", "--workers", "1")
    server = launch(*flags, environment={"CXX": "no-such-g++"}, kind="server")
    with connected(server.address) as stub:
        info = stub.GetServerInfo(pb.GetServerInfoRequest())
    assert not info.HasField("native")
    assert "no-such-g++" in info.native_status.unavailable
    ready = server.metrics_url.replace("/metrics", "/readyz")
    with urllib.request.urlopen(ready, timeout=10) as answer:
        assert b"no-such-g++" in answer.read()
    assert any("no-such-g++" in line for line in server.log)
    assert total(metrics(server.metrics_url), "lazyfx_native_sandbox_layers") == 0


def test_a_kernel_that_lacks_a_layer_asks_for_unconfined(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "available", lambda: ("privileges", "limits"))
    with pytest.raises(pools.NativeUnavailable, match=r"landlock, seccomp.*--native-unconfined"):
        pools.native_protection(load(["--native"]).native)
    held = pools.native_protection(load(["--native", "--native-unconfined"]).native)
    assert held.layers == ()
    assert {"landlock", "seccomp"} <= set(held.missing)


def test_another_user_is_taken_where_python_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools, "available", lambda: pools.LAYERS)
    monkeypatch.setattr(pools, "other_user", lambda: (4711, ""))
    assert pools.native_protection(load(["--native"]).native).layers[-1] == "user"
    monkeypatch.setattr(pools, "other_user", lambda: (None, "/root is readable by root only"))
    assert pools.native_protection(load(["--native"]).native).missing == ("user",)
    assert os.geteuid() >= 0


def test_a_server_imports_neither_dynamo_nor_inductor() -> None:
    """Its workers do; it would take seconds and a hundred megabytes."""
    heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.fsdp", "networkx")
    program = f"import sys, lazyfx_server.app; print(*(set({heavy}) & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert not ran.stdout.split()
