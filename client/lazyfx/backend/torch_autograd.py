"""Private names of torch's autograd that the backend uses; imported only here."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch.fx import GraphModule
from torch.utils import checkpoint

__all__ = [
    "CheckpointRun",
    "checkpoint_run",
    "has_traced_hooks",
    "in_backward",
    "keeping_versions",
]

_Hooks: TypeAlias = tuple[Callable[[Any], Any], Callable[[Any], Any]]

_FIRST_RUN = "_checkpoint_hook.__init__.<locals>.pack_hook"
_RECOMPUTATION = "_recomputation_hook.__init__.<locals>.pack_hook"


class CheckpointRun(NamedTuple):
    """One run of a region under a checkpoint with `use_reentrant=False`.

    Attributes:
        region: The same object each time that one call of the region is computed.
        recomputation: Identifies the recomputation; None the first time.
    """

    region: object
    recomputation: Any


def in_backward() -> bool:
    """Whether this thread is running a backward pass."""
    return int(torch._C._current_graph_task_id()) != -1  # noqa: SLF001


def checkpoint_run() -> CheckpointRun | None:
    """The innermost checkpoint that this thread is in, however many other hooks are within it."""
    taken: list[_Hooks] = []
    try:
        while (hooks := _top_hooks()) is not None:
            found = _as_checkpoint(hooks[0])
            if found is not None:
                return found
            torch._C._autograd._pop_saved_tensors_default_hooks()  # noqa: SLF001
            taken.append(hooks)
        return None
    finally:
        for pack, unpack in reversed(taken):
            torch._C._autograd._push_saved_tensors_default_hooks(pack, unpack)  # noqa: SLF001


@contextmanager
def keeping_versions(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Writes to these tensors within it are not noticed by autograd."""
    versions = tuple(tensor._version for tensor in tensors)  # noqa: SLF001
    try:
        yield
    finally:
        torch._C._autograd._unsafe_set_version_counter(tuple(tensors), versions)  # noqa: SLF001


def has_traced_hooks() -> bool:
    """Whether saved-tensors hooks are active that AOTAutograd traces into the graphs it makes.

    Those are GraphModules; torch calls all others when the compiled code runs.
    """
    hooks = _top_hooks()
    return hooks is not None and all(isinstance(hook, GraphModule) for hook in hooks)


def _top_hooks() -> _Hooks | None:
    hooks: _Hooks | None = torch._C._autograd._top_saved_tensors_default_hooks(True)  # noqa: SLF001
    return hooks


def _as_checkpoint(pack: Callable[[Any], Any]) -> CheckpointRun | None:
    pack = inspect.unwrap(pack)
    if getattr(pack, "__module__", None) != checkpoint.__name__:
        return None
    closure = inspect.getclosurevars(pack).nonlocals
    if pack.__qualname__ == _FIRST_RUN:
        return CheckpointRun(closure["frame"], None)
    if pack.__qualname__ == _RECOMPUTATION:
        return CheckpointRun(closure["target_frame_ref"](), closure["gid"])
    return None
