"""Several ranks, one compile; one verdict for all of them when asked for."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import nursery
import pytest
import torch
from training.counting import native_compiles
from training.loops import Net, batches, block, train

_TESTS = Path(__file__).parents[1]
RANKS = 2


def run_job(
    folder: Path, address: str, *, ranks: int = RANKS, **options: object
) -> list[dict[str, Any]]:
    """Run one torchrun job on a port of its own; returns what each rank wrote."""
    folder.mkdir()
    options_json = json.dumps({"address": address, "on_error": "eager", **options})
    run = nursery.run(
        "torch",
        [
            "-m", "torch.distributed.run", "--nproc-per-node", str(ranks),
            "--rdzv-backend", "c10d", "--rdzv-endpoint", "127.0.0.1:0",
            "--no-python", *nursery.command("inductor"),
            str(_TESTS / "training" / "ranks.py"), str(folder), options_json,
        ],
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(_TESTS), os.environ.get("PYTHONPATH", "")]),
        },
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-4000:]
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def expected_losses(width: int) -> list[float]:
    return [float(loss) for loss in train(Net(width=width), batches()).losses]


def test_one_compile_for_all_ranks_and_none_for_the_next_job(
    native_server: Any, tmp_path: Path
) -> None:
    before = native_compiles(native_server)
    cold = run_job(tmp_path / "cold", native_server.address, width=40, agreement="all")
    assert [rank["outcomes"] for rank in cold] == [["remote"], ["remote"]]
    assert native_compiles(native_server) == before + 1
    assert cold[0]["divergence"] == [""]

    warm = run_job(tmp_path / "warm", native_server.address, width=40, agreement="all")
    assert [rank["caches"] for rank in warm] == [["hit"], ["hit"]]
    assert native_compiles(native_server) == before + 1
    assert warm[0]["losses"] == cold[0]["losses"]
    # Every rank has the same batches, so the job learns what one process does.
    assert cold[0]["losses"] == pytest.approx(expected_losses(width=40))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_four_ranks_compile_each_graph_once_and_the_next_job_none(
    native_server: Any, tmp_path: Path
) -> None:
    before = native_compiles(native_server)
    job = {"ranks": 4, "width": 42, "agreement": "all", "wrap": "broken"}
    cold = run_job(tmp_path / "cold", native_server.address, **job)
    digests = cold[0]["digests"]
    assert len(set(digests)) >= 2
    assert all(rank["digests"] == digests for rank in cold)
    assert all(set(rank["outcomes"]) == {"remote"} for rank in cold), cold
    assert native_compiles(native_server) == before + len(set(digests))

    warm = run_job(tmp_path / "warm", native_server.address, **job)
    assert all(set(rank["caches"]) == {"hit"} for rank in warm), warm
    assert native_compiles(native_server) == before + len(set(digests))
    assert warm[0]["losses"] == cold[0]["losses"] == pytest.approx(expected_losses(width=42))


@pytest.mark.slow
def test_fsdp2(native_server: Any, tmp_path: Path) -> None:
    ranks = run_job(tmp_path / "job", native_server.address, width=44, agreement="all", wrap="fsdp")
    assert all(set(rank["outcomes"]) == {"remote"} for rank in ranks), ranks
    assert ranks[0]["losses"] == pytest.approx(expected_losses(width=44))


@pytest.mark.long
def test_tensor_parallel_ranks_share_the_compiles(native_server: Any, tmp_path: Path) -> None:
    before = native_compiles(native_server)
    job = {"width": 46, "agreement": "all", "wrap": "tensor_parallel"}
    ranks = run_job(tmp_path / "job", native_server.address, **job)
    assert [rank["outcomes"] for rank in ranks] == [["remote"], ["remote"]], ranks
    assert ranks[0]["digests"] == ranks[1]["digests"]
    assert native_compiles(native_server) == before + 2  # a forward and a backward
    alone = block(46)
    losses = train(alone, batches()).losses
    assert ranks[0]["losses"] == pytest.approx([float(loss) for loss in losses])
    for found, expected in zip(ranks[0]["gradients"], alone.parameters(), strict=True):
        torch.testing.assert_close(torch.tensor(found), expected.grad)


def test_when_one_rank_has_no_server_none_uses_it(native_server: Any, tmp_path: Path) -> None:
    ranks = run_job(tmp_path / "job", native_server.address, width=40, agreement="all", lost_rank=1)
    assert [rank["outcomes"] for rank in ranks] == [["eager"], ["eager"]]
    assert "rank 1 cannot use the remote result" in ranks[0]["reasons"][0]
    assert "UNAVAILABLE" in ranks[1]["reasons"][0]


def test_the_node_where_ranks_diverge_is_named(server: Any, tmp_path: Path) -> None:
    ranks = run_job(
        tmp_path / "job",
        server.address,
        width=40,
        agreement="all",
        compile="eager",
        uneven=True,
    )
    assert [rank["outcomes"] for rank in ranks] == [["remote"], ["remote"]]
    assert "ranks 0 and 1 differ from node" in ranks[0]["divergence"][0]
    assert "bias" in ranks[0]["divergence"][0]
