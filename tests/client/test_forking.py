"""Processes forked while a client is open get an error at once, and never hang or crash."""

from __future__ import annotations

from pathlib import Path

import nursery
import pytest

_PROGRAMS = Path(__file__).with_name("forking.py")
_SECONDS = 300


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


def run(address, rounds, *programs):
    command = [str(_PROGRAMS), address, str(rounds), *programs]
    ran = nursery.run("torch", command, timeout=_SECONDS)
    assert (ran.returncode, ran.stdout.strip()) == (0, "ok"), ran.stderr


@pytest.mark.parametrize(
    "programs", [("before",), ("clients", "asynchronous", "threads", "loaders", "backend")]
)
def test_forks(server, programs):
    # Two addresses, as of replicas: each has a channel of its own.
    port = server.address.rpartition(":")[2]
    run(f"{server.address},localhost:{port}", 2, *programs)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["clients", "asynchronous", "threads", "loaders", "backend"])
def test_many_forks(server, program):
    run(server.address, 20, program)
