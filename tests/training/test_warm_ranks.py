"""`lazyfx warm --world-size N` makes the graphs of all ranks before the job, without the job."""

from __future__ import annotations

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import nursery
import pytest
from training.counting import native_compiles
from training.test_ranks import run_job

_HERE = Path(__file__).parent


def warm(*arguments: str) -> subprocess.CompletedProcess[str]:
    """`lazyfx warm` as a process."""
    program = "from lazyfx.cli.__main__ import main; main()"
    variables = {**os.environ, "PYTHONPATH": str(_HERE.parent)}
    return nursery.run("inductor", ["-c", program, "warm", *arguments], env=variables)


class Named(NamedTuple):
    """A difference as the report names it.

    Attributes:
        node: What the node is called.
        field: The field.
        values: The values on the two ranks.
        advice: A part of the advice.
    """

    node: str
    field: str
    values: tuple[str, str]
    advice: str


_F = "torch.nn.functional"
# One for each graph of staged_ranks.py.
STAGED = {
    "the_rank_itself": Named("add", "args[1]", ("0 (int)", "1 (int)"), "the rank itself"),
    "a_seed": Named("full_like", "args[1]", ("1234.5 (float)", "1235.5 (float)"), "a number"),
    "a_batch_size": Named("l_x_", "value.shape", ("[4, 8]", "[5, 8]"), "drop_last"),
    "a_path": Named(
        "_assert_async", "args[1]", ("'/data/shard-0/broken'", "'/data/shard-1/broken'"), "text"
    ),
    "a_dtype": Named("l_x_", "value.dtype", ("float32", "float64"), "in the same way"),
    "a_slice": Named("getitem", "args[1][1].start", ("0 (int)", "2 (int)"), "a number"),
    "a_frozen_input": Named(
        "l_x_", "value.requires_grad", ("True (bool)", "False (bool)"), "in the same way"
    ),
    "a_branch": Named("y_1", "", ("call_method log(%y)", "no such node"), "the branch"),
    "another_function": Named("silu", "target", (f"{_F}.silu", f"{_F}.gelu"), "the choice"),
    "a_stride": Named("l_x_", "value.stride", ("contiguous", "[1, 8]"), "sizes"),
    "a_dropout_rate": Named("dropout", "kwargs[p]", ("0.1 (float)", "0.2 (float)"), "a number"),
    "a_split": Named("split", "args[1][0]", ("1 (int)", "2 (int)"), "a number"),
}
_DIFFERENCE = re.compile(
    r"graph (\d+)(?:, node (\S+?))?(?:: ([^:]+))?: (.+) on rank 0, (.+) on rank 1"
)


def test_each_constant_of_a_rank_is_named() -> None:
    script = _HERE / "staged_ranks.py"
    done = warm("--world-size", "2", "--capture-only", str(script), "--name", "value")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rank 1 has ended" in done.stdout
    lines = done.stdout.splitlines()
    found = {}
    for number, line in enumerate(lines):
        if match := _DIFFERENCE.search(line):
            place, advice = lines[number + 1], lines[number + 2]
            function = re.search(r"staged_ranks.py:\d+ in (\w+)", place)
            assert function, lines[number : number + 3]
            found[function[1]] = (match, advice)
    assert found.keys() == STAGED.keys(), done.stdout
    for name, (match, advice) in found.items():
        expected = STAGED[name]
        _, node, field, *values = match.groups()
        assert (node, field or "", tuple(values)) == expected[:3], name
        assert expected.advice in advice, name


def test_what_depends_on_values_is_said(tmp_path: Path) -> None:
    script = tmp_path / "branching.py"
    script.write_text(
        "import torch\n"
        "def step(x):\n"
        "    y = x.sin()\n"
        "    if y.sum() > 0:\n"
        "        return y.cos()\n"
        "    return y.tan()\n"
        "torch.compile(step, backend='lazyfx')(torch.ones(3))\n"
    )
    done = warm("--world-size", "64", "--ranks", "0,63", "--capture-only", str(script))
    assert done.returncode == 0, done.stderr
    assert "ranks 0, 63: 2 graphs, the same on each" in done.stdout
    assert "cannot be foreseen: branching.py:4 in step: a branch on values" in done.stdout


def test_a_rank_that_fails_is_reported(tmp_path: Path) -> None:
    script = tmp_path / "failing.py"
    script.write_text(
        "import os, torch, torch.distributed as dist\n"
        "torch.compile(torch.sin, backend='lazyfx')(torch.ones(3))\n"
        "dist.init_process_group('gloo')\n"
        "sent = [0]\n"
        "dist.broadcast_object_list(sent, src=1)\n"
    )
    done = warm("--world-size", "2", "--capture-only", str(script))
    assert done.returncode == 1
    assert "rank 0 failed: the script waits for objects from rank 1" in done.stdout
    assert "rank 1 failed" not in done.stdout


def test_ranks_run_in_the_order_given(tmp_path: Path) -> None:
    script = tmp_path / "receiving.py"
    script.write_text(
        "import torch, torch.distributed as dist\n"
        "dist.init_process_group('gloo')\n"
        "sent = [dist.get_rank()]\n"
        "dist.broadcast_object_list(sent, src=1)\n"
        "print('received', sent)\n"
    )
    ranks = ("--world-size", "2", "--ranks", "1,0")
    done = warm(*ranks, "--capture-only", str(script))
    assert done.stdout.count("received [1]") == 2, done.stdout
    # None of them compiles, and no server was to do it.
    assert done.returncode == 1
    assert "no rank has a graph" in done.stderr
    assert "on the server" not in done.stderr


def test_a_rank_leaves_no_process_and_no_folder(tmp_path: Path) -> None:
    script = tmp_path / "working.py"
    script.write_text(
        "import multiprocessing, sys, tempfile, time\n"
        "folder = tempfile.TemporaryDirectory(dir=sys.argv[1])\n"
        "fork = multiprocessing.get_context('fork')\n"
        "for is_daemon in (True, False):\n"
        "    worker = fork.Process(target=time.sleep, args=(60,), daemon=is_daemon)\n"
        "    worker.start()\n"
        "    print('worker', worker.pid)\n"
    )
    held = tmp_path / "held"
    held.mkdir()
    done = warm("--world-size", "2", "--capture-only", str(script), str(held))
    assert "rank 1: graphs: 0" in done.stderr  # the parent's folder was there until the end
    assert "Traceback" not in done.stderr
    assert not list(held.iterdir())
    workers = re.findall(r"worker (\d+)", done.stdout)
    assert len(workers) == 4
    assert not [pid for pid in workers if Path("/proc", pid).exists()]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ranks", "0", "x.py"), "--world-size"),
        (("--world-size", "2", "--ranks", "0,2", "x.py"), "there is no rank 2"),
        (("--world-size", "2", "--ranks", "one", "x.py"), "must be ranks such as"),
        (("--world-size", "2", "--ranks", "1-0", "x.py"), "'1-0' names no rank"),
    ],
)
def test_wrong_ranks_are_refused(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    (tmp_path / "x.py").touch()
    done = warm(*arguments[:-1], str(tmp_path / arguments[-1]))
    assert done.returncode == 2
    assert message in done.stderr


def warm_job(address: str, folder: Path, ranks: int, **options: object) -> str:
    """Warm a server for a job of ranks.py; the report."""
    folder.mkdir()
    given = json.dumps({"address": address, **options})
    done = warm(
        *("--address", address, "--world-size", str(ranks), "--steps", "1"),
        *(str(_HERE / "ranks.py"), str(folder), given),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def assert_job_compiles_nothing(
    server: Any, folder: Path, *, ranks: int, **options: object
) -> None:
    before = native_compiles(server)
    report = warm_job(server.address, folder / "warm", ranks, **options)
    assert f"ranks 0-{ranks - 1}: " in report
    assert "the same on each" in report
    made = native_compiles(server)
    assert made > before
    job = run_job(folder / "job", server.address, ranks=ranks, **options)
    assert all(set(rank["caches"]) == {"hit"} for rank in job), job
    assert all(set(rank["outcomes"]) == {"remote"} for rank in job), job
    # The digests that a real group gives are those that were warmed.
    assert all(digest[:12] in report for digest in job[0]["digests"])
    assert native_compiles(server) == made


def test_a_job_compiles_nothing_after_its_ranks_were_warmed(
    native_server: Any, tmp_path: Path
) -> None:
    assert_job_compiles_nothing(native_server, tmp_path, ranks=2, width=46, wrap="ddp")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("wrap", "width"), [("broken", 47), ("fsdp", 48), ("collective", 49)])
def test_four_ranks_compile_nothing_after_they_were_warmed(
    native_server: Any, tmp_path: Path, wrap: str, width: int
) -> None:
    assert_job_compiles_nothing(native_server, tmp_path, ranks=4, width=width, wrap=wrap)
