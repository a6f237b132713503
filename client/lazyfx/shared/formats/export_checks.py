"""Fixes, or refuses, valid graphs that torch.export would get wrong."""

# ruff: noqa: SLF001 - calls that switch autocast, and fake tensors, have no public names

from __future__ import annotations

from typing import Any

import torch
from torch.amp import autocast_mode
from torch.export import ExportedProgram
from torch.fx import GraphModule

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.formats.possible_writes import may_write, share_memory

REMEDY = "use save_pickle, or request code or the graph"


def enter_autocast_when_run(module: GraphModule) -> None:
    """Make a graph switch autocast so that torch.export notices; changes it in place.

    torch.export records the calls that switch autocast without executing them, so it sees the wrong
    dtypes after them.
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
    """Check that a program contains exactly the tensors of its module.

    Raises:
        UnsupportedGraphError: A computed value became a constant, or a write to one tensor would
            not affect another that shares its memory.
    """
    constants = [t for t in program.constants.values() if isinstance(t, torch.Tensor)]
    if any(isinstance(t, torch._subclasses.FakeTensor) for t in constants):
        raise UnsupportedGraphError(
            "torch.export would turn a computed value into a constant",
            remedy=REMEDY,
        )
    kept = [t for t in program.state_dict.values() if isinstance(t, torch.Tensor)]
    shared = share_memory(kept, constants) or _share(constants)
    if shared and may_write(module):
        raise UnsupportedGraphError(
            "the graph writes to tensors that share memory, which torch.export separates",
            remedy=REMEDY,
        )


def _share(tensors: list[torch.Tensor]) -> bool:
    distinct = list({id(tensor): tensor for tensor in tensors}.values())
    return any(share_memory(distinct[:i], [tensor]) for i, tensor in enumerate(distinct))
