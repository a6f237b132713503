"""Private names of torch.distributed that warming uses; imported only here.

A job's process groups are replaced below `torch.distributed`: the calls, the names of groups and
backends, and what dynamo sees of them stay those of the job. Only the object that would talk to
the other ranks is torch's own `FakeProcessGroup`, which talks to nobody.
"""

from __future__ import annotations

import contextlib
import datetime
import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FakeProcessGroup, HashStore, Logger, Store
from torch._dynamo.utils import graph_break_reasons
from torch.distributed import distributed_c10d

from lazyfx.warming.broadcasts import Broadcasts
from lazyfx.warming.rank_messages import RankMessages

__all__ = ["graph_break_reasons", "import_early", "pretend_other_ranks"]

_BACKENDS: Final = ("ProcessGroupGloo", "ProcessGroupNCCL")
# What torch imports at the first compile of a process, and starts no process for.
_IMPORTED_EARLY: Final = ("torch._functorch.aot_autograd", "torch._functorch.partitioners")
# A key that another rank would set never comes.
_STORE_WAIT: Final = datetime.timedelta(seconds=5)


def import_early() -> None:
    """Import what each fork of this process would have to import."""
    for name in _IMPORTED_EARLY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


def pretend_other_ranks(messages: Path) -> None:
    """Make `torch.distributed` of this process believe that the other ranks are there.

    Cannot be undone; intended for a process that runs one script and exits. Every backend is
    replaced that `init_process_group` can name: gloo and NCCL. Collectives return at once, with
    this rank's own data in place of that of others.

    Args:
        messages: A private folder in which ranks that run one after the other leave what they
            broadcast.
    """
    fake: Any = FakeProcessGroup
    # The two calls on a gloo group that the fake one has no code for.
    fake._set_sequence_number_for_group = lambda _: None  # noqa: SLF001
    fake.monitored_barrier = lambda *_args, **_kwargs: None
    # DDP's log reads the number of threads of a gloo group, and takes every group under that name
    # for one: a segmentation fault.
    log: Any = Logger
    log.set_construction_data_and_log = lambda *_args, **_kwargs: None
    for name in _BACKENDS:
        real = getattr(distributed_c10d, name, None)
        if real is not None:
            setattr(distributed_c10d, name, _replacement(real))
    distributed: Any = dist
    register_hook = distributed._register_comm_hook  # noqa: SLF001
    distributed.Reducer = _local_reducer(distributed.Reducer, register_hook)
    for name in ("_register_comm_hook", "_register_builtin_comm_hook"):
        setattr(distributed, name, _without_hook)
    replaced: dict[str, Any] = {
        "rendezvous": _rendezvous,
        "_store_based_barrier": lambda *_args, **_kwargs: None,
        **Broadcasts(RankMessages(messages)).functions(),
    }
    for name, function in replaced.items():
        setattr(distributed_c10d, name, function)
        if not name.startswith("_"):
            setattr(distributed, name, function)


class _Replaced(type):
    """The type of a backend whose instances are fake groups."""

    def __call__(cls, _store: Store, rank: int, size: int, *_: Any, **__: Any) -> Any:
        fake: Any = FakeProcessGroup
        return fake._create_internal(rank, size, fake.Options())  # noqa: SLF001

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, FakeProcessGroup)


def _replacement(real: Any) -> type:
    return _Replaced(real.__name__, (), {"Options": getattr(real, "Options", None)})


def _local_reducer(real: Any, register_hook: Callable[..., None]) -> Callable[..., Any]:
    """DDP's reducer with a hook that takes this rank's gradients for those of all.

    Its own takes the result of a collective, which a fake group does not give.
    """

    def keep(_: object, bucket: Any) -> torch.futures.Future[torch.Tensor]:
        done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
        done.set_result(bucket.buffer())
        return done

    def make(*args: Any, **kwargs: Any) -> Any:
        reducer = real(*args, **kwargs)
        register_hook(reducer, None, keep)
        return reducer

    return make


def _without_hook(*_: object) -> None:
    """Registers none: a script's own hook would wait for results of collectives too."""


def _rendezvous(
    _url: str, rank: int = -1, world_size: int = -1, **_: Any
) -> Iterator[tuple[Store, int, int]]:
    """As `torch.distributed.rendezvous`, of one process."""
    store = HashStore()
    store.set_timeout(_STORE_WAIT)
    yield (
        store,
        rank if rank >= 0 else int(os.environ["RANK"]),
        world_size if world_size > 0 else int(os.environ["WORLD_SIZE"]),
    )
