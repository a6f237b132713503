"""Private names of torch at which the phases of a compile begin; imported only here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

from torch._functorch import aot_autograd
from torch._functorch._aot_autograd import graph_compile
from torch._inductor import compile_fx
from torch._inductor.codecache import PyCodeCache
from torch._inductor.fx_passes import joint_graph, post_grad
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import Scheduler
from torch._inductor.standalone_compile import AOTCompiledArtifact

from lazyfx.shared import wire
from lazyfx_server.jobs.native import making, source_checks

PHASES: dict[str, tuple[tuple[Any, str], ...]] = {
    "ours: read the graph": (
        (making, "without_texts"),
        (wire, "decode"),
        (making, "register_stand_ins"),
        (making, "fake_inputs"),
        (making, "recall_items"),
    ),
    "AOTAutograd: trace forward and backward": (
        (aot_autograd, "create_aot_state"),
        (aot_autograd, "aot_stage1_graph_capture"),
    ),
    "prepare the patterns of passes": (
        (joint_graph, "lazy_init"),
        (post_grad, "lazy_init"),
    ),
    "passes over the joint graph": ((compile_fx, "_recursive_joint_graph_passes"),),
    "partition it": ((graph_compile, "_partition_joint_graph_into_fw_bw"),),
    "passes over forward and backward": ((compile_fx, "_recursive_post_grad_passes"),),
    "Inductor: lower to loops": ((GraphLowering, "run"),),
    "Inductor: schedule and fuse": ((Scheduler, "__init__"),),
    "Inductor: write C++": ((Scheduler, "codegen"),),
    "ours: check sources": (
        (source_checks, "check_cpp"),
        (source_checks, "check_wrapper"),
    ),
    "load the Python module": ((PyCodeCache, "load_by_key_path"),),
    "serialize": ((AOTCompiledArtifact, "serialize"),),
    "ours: pack": ((making, "conditions_digest"),),
}
"""Where each phase begins: an owner, and the name of its function."""


class Stopwatch:
    """CPU seconds by phase, each without those within it.

    Attributes:
        seconds: By phase.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PHASES, 0.0)
        self._open: list[str] = []
        self._last = 0.0

    def timed(self, phase: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A function whose calls count as a phase."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self._change()
            self._open.append(phase)
            try:
                return function(*args, **kwargs)
            finally:
                self._change()
                self._open.pop()

        return call

    def _change(self) -> None:
        now = time.process_time()
        if self._open:
            self.seconds[self._open[-1]] += now - self._last
        self._last = now


@contextmanager
def watching_phases(watch: Stopwatch) -> Iterator[None]:
    """Time the phases of a compile within the block."""
    with ExitStack() as stack:
        for phase, places in PHASES.items():
            for owner, name in places:
                original = vars(owner)[name]
                if isinstance(original, classmethod):
                    made: Any = classmethod(watch.timed(phase, original.__func__))
                else:
                    made = watch.timed(phase, original)
                stack.enter_context(mock.patch.object(owner, name, made))
        yield
