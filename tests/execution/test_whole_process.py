"""Behaviour that needs a separate process: its main script, its environment, its end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run_script(tmp_path: Path, body: str, *, wait: bool = True) -> subprocess.Popen[str]:
    script = tmp_path / "main_script.py"
    script.write_text(
        "print('main script imported by', __name__, flush=True)\n"
        "import asyncio, json, os, sys\n"
        f"sys.path.insert(0, {str(HERE)!r})\n"
        "import worker_jobs\n"
        "from lazyfx_server.execution import SpawnSource, ProcessExecutor, start_forkserver\n"
        "def order(do, **arguments):\n"
        "    return json.dumps({'do': do, **arguments}).encode()\n" + textwrap.dedent(body)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "0"},
    )
    if wait:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        process.out, process.err = out, err  # type: ignore[attr-defined]
    return process


def gone(pid: int, seconds: float = 20) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


def test_workers_import_neither_the_main_script_nor_grpc(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        import grpc
        async def main():
            forkserver = start_forkserver(["decimal"], {"LAZYFX_TEST_VARIABLE": "set"})
            assert "LAZYFX_TEST_VARIABLE" not in os.environ
            executor = ProcessExecutor(worker_jobs.run, processes=forkserver, workers=1)
            await executor.start()
            modules = json.loads(await executor.run(order("modules"), timeout=30))
            facts = json.loads(await executor.run(order("describe"), timeout=30))
            await executor.run(order("say", text="a worker speaks"), timeout=30)
            await executor.close()
            print(json.dumps([modules, facts]))
        if __name__ == "__main__":
            asyncio.run(main())
        """,
    )
    first, last = done.out.splitlines()  # type: ignore[attr-defined]
    assert first == "main script imported by __main__"
    modules, facts = json.loads(last)
    assert "grpc" not in modules
    assert "torch" not in modules
    assert "decimal" in modules
    assert facts["variable"] == "set"
    assert facts["threads"] == 1
    assert "a worker speaks" in done.err  # type: ignore[attr-defined]


@pytest.mark.parametrize("processes", ["start_forkserver()", "SpawnSource()"])
@pytest.mark.parametrize("busy", ["idle", "hang_in_native_code", "have_children"])
def test_workers_die_with_a_server_that_is_killed(
    tmp_path: Path, busy: str, processes: str
) -> None:
    touch = tmp_path / "began"
    extra = ", then='hang'" if busy == "have_children" else ""
    job = f"order({busy!r}, touch={str(touch)!r}{extra})" if busy != "idle" else "b''"
    process = run_script(
        tmp_path,
        f"""
        async def main():
            executor = ProcessExecutor(worker_jobs.run, processes={processes}, workers=2)
            await executor.start()
            print(json.dumps(sorted(executor.pids)), flush=True)
            await executor.run({job}, timeout=900)
            await asyncio.sleep(900)
        if __name__ == "__main__":
            asyncio.run(main())
        """,
        wait=False,
    )
    assert process.stdout is not None
    pids = json.loads(next(line for line in process.stdout if line.startswith("[")))
    if busy != "idle":
        deadline = time.monotonic() + 30
        while not (touch.exists() and touch.read_text()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        found = json.loads(touch.read_text())
        pids += found if isinstance(found, list) else [found]
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    assert all(gone(pid) for pid in pids)


def test_forgotten_executor_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    done = run_script(
        tmp_path,
        """
        async def main():
            executor = ProcessExecutor(worker_jobs.run, processes=start_forkserver(), workers=2)
            await executor.start()
            print(json.dumps(sorted(executor.pids)), flush=True)
        asyncio.run(main())
        """,
    )
    pids = json.loads(done.out.splitlines()[-1])  # type: ignore[attr-defined]
    assert all(gone(pid) for pid in pids)


def test_beside_grpc_aio_under_uvloop(tmp_path: Path) -> None:
    """Workers crash and come back while a gRPC server in this process answers."""
    done = run_script(
        tmp_path,
        """
        forkserver = start_forkserver()
        import grpc, uvloop
        from lazyfx_server.execution import WorkerCrashed
        async def main():
            executor = ProcessExecutor(
                worker_jobs.run, processes=forkserver, workers=2, max_jobs=7)
            await executor.start()
            async def handle(request, context):
                try:
                    return await executor.run(request, timeout=30)
                except WorkerCrashed:
                    return b"crashed"
            server = grpc.aio.server()
            server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(
                "Test", {"Run": grpc.unary_unary_rpc_method_handler(handle)}),))
            port = server.add_insecure_port("127.0.0.1:0")
            await server.start()
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                call = channel.unary_unary("/Test/Run")
                async def one(n):
                    if n % 5 == 4:
                        assert await call(order("abort")) == b"crashed"
                    else:
                        assert await call(order("echo", text=str(n))) == str(n).encode()
                await asyncio.gather(*(one(n) for n in range(100)))
            await server.stop(None)
            await executor.close()
            print("all well")
        uvloop.run(main())
        """,
    )
    assert done.out.splitlines()[-1] == "all well"  # type: ignore[attr-defined]


def test_what_a_killed_process_left_is_removed_by_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though the path of its socket would be too long."""
    folder = tmp_path / ("long" * 25)
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    body = """
        async def main():
            executor = ProcessExecutor(worker_jobs.run, processes=start_forkserver(), workers=1)
            await executor.start()
            if len(sys.argv) == 1:
                os.kill(os.getpid(), 9)
            await executor.close()
        if __name__ == "__main__":
            asyncio.run(main())
        """
    run_script(tmp_path, body, wait=False).communicate(timeout=60)
    base = folder / f"lazyfx-workers-{os.geteuid()}"
    (left,) = base.iterdir()
    others = folder / "pymp-of-another"
    others.mkdir()
    run_script(tmp_path, body.replace("== 1", "== 0"))
    assert list(base.iterdir()) == []
    assert set(folder.iterdir()) == {base, others}
    assert not left.exists()
