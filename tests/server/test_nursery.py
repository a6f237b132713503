"""Programs that the tests fork from a nursery behave like freshly started ones."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import nursery
from harness import (
    DCE,
    artifact,
    compile_request,
    connected,
    graph_of,
    metrics,
    wait_until,
    worker_pids,
)
from servers import RunningServer

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
        # Whichever starts first removes what killed servers of other tests have left.
        "log": [
            line.split(" ", 2)[2].split(" on ")[0]
            for line in server.log
            if "owned_folder" not in line
        ],
    }


def test_a_forked_server_is_like_one_with_its_own_interpreter(
    launch: Callable[..., RunningServer], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    flags = ("--workers", "1", "--worker-threads", "2", "--signing-key", str(key))
    forked = launch(*flags, store=tmp_path / "one")
    started = launch(*flags, store=tmp_path / "other", own_interpreter=True)
    assert _about(forked) == _about(started)
    assert forked.stop() == started.stop() == 0


def test_the_end_of_a_forked_server_is_reported(launch: Callable[..., RunningServer]) -> None:
    server = launch("--workers", "1")
    assert server.process.poll() is None
    server.process.kill()
    assert server.process.wait(60) == -signal.SIGKILL


_SAYS = """
import os, sys
print([*sys.argv[1:], os.environ["SAID"], __name__, os.getcwd()])
print("lazyfx" in sys.modules, file=sys.stderr)
raise SystemExit(3)
"""


def test_programs_of_each_form_run_as_in_their_own_interpreter(tmp_path: Path) -> None:
    (tmp_path / "says.py").write_text(_SAYS)
    environment = {**os.environ, "SAID": "a word", "PYTHONPATH": str(tmp_path)}
    for program in (["-c", _SAYS], ["-m", "says"], [str(tmp_path / "says.py")]):
        ran = nursery.run("torch", [*program, "one"], env=environment)
        assert ran.returncode == 3, ran.stderr
        assert ran.stdout == f"{['one', 'a word', '__main__', str(Path.cwd())]}\n"
        assert ran.stderr == "False\n"
    command = [*nursery.command("torch"), "-c", _SAYS, "one"]
    shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (shown.returncode, shown.stdout, shown.stderr) == (3, ran.stdout, "False\n")


def test_torch_alone_is_all_that_is_there() -> None:
    program = "import torch, sys; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    command = ["-I", "-c", program]
    own = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=True)
    forked = nursery.run("torch", command, check=True)
    more = {*forked.stdout.split()} - {*own.stdout.split()}
    assert more <= sys.stdlib_module_names


def test_a_program_that_its_owner_dropped_is_ended() -> None:
    process = nursery.start("torch", ["-c", "import time; time.sleep(600)"])
    assert isinstance(process, nursery.Process)
    pid = process.pid
    del process
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "its end")


def test_ctrl_c_ends_a_program_as_it_ends_any() -> None:
    program = "import time; print('on', flush=True); time.sleep(600)"
    process = nursery.start("torch", ["-c", program])
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(60)
    assert process.returncode == -signal.SIGINT
    assert "KeyboardInterrupt" in stderr
