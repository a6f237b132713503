"""Runs a training script as one rank of a job, in a process that ends with it."""

from __future__ import annotations

import os
import traceback
from dataclasses import dataclass
from pathlib import Path

import torch

from lazyfx.warming.rank_capture import RankCapture
from lazyfx.warming.rank_messages import MissingMessageError
from lazyfx.warming.rank_runs import RankRun
from lazyfx.warming.stepped_script import SteppedScript
from lazyfx.warming.torch_fake_groups import pretend_other_ranks


@dataclass(frozen=True)
class Job:
    """A job whose ranks are run.

    Attributes:
        script: The script.
        arguments: Its arguments.
        world_size: How many ranks the job has.
        ranks_per_node: How many of them share a node.
        steps: Optimizer steps after which a rank is stopped.
        has_server: Whether a server compiles the graphs; they are only captured otherwise.
    """

    script: Path
    arguments: tuple[str, ...]
    world_size: int
    ranks_per_node: int
    steps: int
    has_server: bool


def rank_variables(job: Job, rank: int) -> dict[str, str]:
    """The environment variables that torchrun gives to a rank."""
    local, node = rank % job.ranks_per_node, rank // job.ranks_per_node
    nodes = -(-job.world_size // job.ranks_per_node)
    found = {
        "RANK": rank,
        "WORLD_SIZE": job.world_size,
        "LOCAL_RANK": local,
        "LOCAL_WORLD_SIZE": min(job.ranks_per_node, job.world_size),
        "GROUP_RANK": node,
        "GROUP_WORLD_SIZE": nodes,
        "ROLE_RANK": rank,
        "ROLE_WORLD_SIZE": job.world_size,
        "ROLE_NAME": "default",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 29500,
        "TORCHELASTIC_RESTART_COUNT": 0,
        "TORCHELASTIC_MAX_RESTARTS": 0,
        "TORCHELASTIC_RUN_ID": "lazyfx-warm",
        "TORCHELASTIC_USE_AGENT_STORE": True,
    }
    return {name: str(value) for name, value in found.items()}


def run_rank(job: Job, rank: int, folder: Path, messages: Path) -> None:
    """Run the script as a rank, and write what it did to a folder.

    The process is no longer good for anything else afterwards.

    Args:
        job: The job.
        rank: The rank.
        folder: Receives the result and the recorded graphs of this rank.
        messages: What ranks send each other; the same folder for all of them.
    """
    os.environ.update(rank_variables(job, rank))
    if job.ranks_per_node > 1 and "OMP_NUM_THREADS" not in os.environ:
        # As torchrun does; torch has been imported already.
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
    pretend_other_ranks(messages)
    capture = RankCapture(folder, has_server=job.has_server)
    capture.install()
    script = SteppedScript(job.script, job.arguments, job.steps)
    problem = _run(script)
    RankRun(rank, tuple(capture.graphs), capture.breaks(), script.steps, problem).write(folder)


def _run(script: SteppedScript) -> str:
    """Run the script; why it failed, or ""."""
    try:
        script.run()
    except SystemExit as exit_:
        if exit_.code not in (None, 0):
            return f"the script ended with status {exit_.code}"
    except MissingMessageError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001 - whatever the script raises
        traceback.print_exc()
        return "".join(traceback.format_exception_only(error)).strip()
    return ""
