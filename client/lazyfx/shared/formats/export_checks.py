"""What torch.export gets wrong about graphs that are right, put right or refused."""

# ruff: noqa: SLF001 - calls that switch autocast, and fake tensors, have no public names

from __future__ import annotations

from typing import Any

import torch
from torch.amp import autocast_mode
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.possible_writes import may_write, share_memory

REMEDY = "save_pickle keeps it; or ask for code or the graph"


def enter_autocast_when_run(module: GraphModule) -> None:
    """Have a graph switch autocast where torch.export notices; changes it in place.

    torch.export writes the calls that switch it into its program, and does not make them: what
    comes after is of the wrong dtype to it.
    """
    for part in module.modules():
        if not isinstance(part, GraphModule):
            continue
        changed = False
        for node in part.graph.nodes:
            if node.target is autocast_mode._enter_autocast:
                node.target, changed = _enter_autocast, True
            elif node.target is autocast_mode._exit_autocast:
                node.target, changed = _exit_autocast, True
        if changed:
            part.recompile()


def _enter_autocast(*given: Any) -> torch.autocast:
    entered = torch.autocast(*given)
    entered.__enter__()
    return entered


def _exit_autocast(entered: torch.autocast) -> None:
    entered.__exit__(None, None, None)


def check_state(program: ExportedProgram, module: GraphModule) -> None:
    """Check that a program holds the tensors of its module, and no others.

    Raises:
        UnsupportedGraphError: A value that the graph computes has become a constant, or what
            the graph writes through one tensor would not be in another that shares its memory.
    """
    constants = [t for t in program.constants.values() if isinstance(t, torch.Tensor)]
    if any(isinstance(t, torch._subclasses.FakeTensor) for t in constants):
        raise UnsupportedGraphError(
            "torch.export would make a constant of a value that the graph computes",
            remedy=REMEDY,
        )
    kept = [t for t in program.state_dict.values() if isinstance(t, torch.Tensor)]
    shared = share_memory(kept, constants) or _share(constants)
    if shared and may_write(module):
        raise UnsupportedGraphError(
            "the graph writes, and tensors that torch.export keeps apart share memory",
            remedy=REMEDY,
        )


def _share(tensors: list[torch.Tensor]) -> bool:
    distinct = list({id(tensor): tensor for tensor in tensors}.values())
    return any(share_memory(distinct[:i], [tensor]) for i, tensor in enumerate(distinct))
