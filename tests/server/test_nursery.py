"""A server that the tests fork from a nursery is as one that a user starts."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

from conftest import RunningServer
from harness import (
    DCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    worker_pids,
)

from lazyfx.v1 import compiler_pb2 as pb


def _descriptors(pid: int) -> list[str]:
    """The kinds of what a process has open."""
    links = [str(path.readlink()) for path in Path(f"/proc/{pid}/fd").iterdir()]
    return sorted(link.partition(":")[0] for link in links)


def _limits(pid: int) -> list[str]:
    """All but those that begin at what the process or its user has used."""
    rows = Path(f"/proc/{pid}/limits").read_text("ascii").splitlines()
    used = ("Max cpu time", "Max address space", "Max processes")
    return [row for row in rows if not row.startswith(used)]


def _about(server: RunningServer) -> dict[str, object]:
    (worker,) = worker_pids(server.pid)
    with connected(server.address) as stub:
        info = stub.GetServerInfo(pb.GetServerInfoRequest())
        for own in ("devices", "uptime", "verify_keys"):
            info.ClearField(own)
        made = stub.Compile(compile_request(graph_of(0.5), DCE, "shape_propagation"))
        code = artifact(stub, made.module_key, pb.ARTIFACT_KIND_CODE).data
    status = Path(f"/proc/{worker}/status").read_text("ascii").splitlines()
    confined = ("Threads", "NoNewPrivs", "Seccomp", "Uid", "SigIgn", "SigBlk", "CapEff")
    return {
        "code": code,
        "passes": [row.name for row in made.report.passes],
        "info": str(info),
        "worker descriptors": _descriptors(worker),
        "worker limits": _limits(worker),
        "worker status": [row for row in status if row.partition(":")[0] in confined],
        "server limits": _limits(server.pid),
        "metrics": {name for name, _ in metrics(server.metrics_url)},
        "log": [line.split(" ", 2)[2].split(" on ")[0] for line in server.log],
    }


def test_a_forked_server_is_as_one_with_an_interpreter_of_its_own(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    flags = ("--workers", "1", "--worker-threads", "2", "--signing-key", str(key))
    forked = launch(*flags, store=tmp_path / "one")
    started = launch(*flags, store=tmp_path / "other", own_interpreter=True)
    assert _about(forked) == _about(started)
    assert forked.stop() == started.stop() == 0


def test_the_end_of_a_forked_server_is_told(launch: Callable[..., RunningServer]) -> None:
    server = launch("--workers", "1")
    assert server.process.poll() is None
    server.process.kill()
    assert server.process.wait(60) == -signal.SIGKILL
