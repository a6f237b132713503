"""Few file descriptors: the limit is raised, calls are refused before the limit is reached."""

from __future__ import annotations

import logging
import resource
import subprocess
import sys

import pytest
from harness import DCE, compile_request, connected, graph_of, metrics, refused, wait_until

from lazyfx_server.errors import OverloadedError
from lazyfx_server.rpc.file_descriptors import FileDescriptorGuard


def test_calls_are_refused_while_descriptors_are_short(caplog: pytest.LogCaptureFixture) -> None:
    now, used = 0.0, 10
    descriptors = FileDescriptorGuard(lambda: used, lambda: 1000, lambda: now)
    caplog.set_level(logging.WARNING)
    descriptors.check()
    used = 950
    descriptors.check()  # checked only now and then
    now += 1
    for _ in range(3):
        with pytest.raises(OverloadedError, match="950 of at most 1000") as caught:
            descriptors.check()
        now += 1
    assert caught.value.retry_after
    used = 20
    now += 1
    descriptors.check()
    assert len(caplog.records) == 2


@pytest.mark.parametrize(("soft", "hard", "warns"), [(64, 8192, False), (64, 256, True)])
def test_the_limit_is_raised_or_a_warning_is_logged(soft: int, hard: int, *, warns: bool) -> None:
    program = (
        "import logging, resource; logging.basicConfig()\n"
        f"resource.setrlimit(resource.RLIMIT_NOFILE, ({soft}, {hard}))\n"
        "from lazyfx_server.file_limit import raise_limit; raise_limit()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])"
    )
    if resource.getrlimit(resource.RLIMIT_NOFILE)[1] < hard:
        pytest.skip("this host allows fewer")
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert int(run.stdout) == hard
    assert ("limit on open files" in run.stderr) is warns


def test_a_server_without_descriptors_says_so_and_lives(launch) -> None:
    server = launch("--workers", "1")
    with connected(server.address) as stub:
        stub.Compile(compile_request(graph_of(1.0), DCE))
        kept = resource.prlimit(server.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, (48, kept[1]))

        def short() -> bool:
            try:
                stub.Compile(compile_request(graph_of(1.0), DCE))
            except Exception:  # noqa: BLE001 - checked below
                return True
            return False

        wait_until(short, "calls are refused")
        refusal = refused(lambda: stub.Compile(compile_request(graph_of(1.0), DCE)))
        assert refusal.code == "RESOURCE_EXHAUSTED"
        assert refusal.retry_after
        samples = metrics(server.metrics_url)
        assert samples["process_max_fds", ()] == 48
        assert samples["process_open_fds", ()] > 0
        resource.prlimit(server.pid, resource.RLIMIT_NOFILE, kept)
        wait_until(lambda: not short(), "calls are served again")
    assert server.process.poll() is None
