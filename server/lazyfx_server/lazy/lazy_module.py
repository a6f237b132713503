"""The lazy module: a recompile marks code stale and is counted; code is generated when needed.

Follows torch's `_LazyGraphModule`, and adds what a service needs: each recompile, requested or
performed, is recorded in the ledger of its job; modules that torch builds inside a job are lazy
too, however they are built; hooks fire once; a parent's recompile does not touch its children.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import PurePath
from time import perf_counter
from typing import Any, ClassVar

import torch.fx.graph_module
import torch.nn.modules.module
from torch.fx import GraphModule
from torch.fx.graph import PythonCode

from lazyfx.shared.source import checked_generation
from lazyfx.shared.source.assembly import GeneratedSource, generate
from lazyfx_server.lazy.recompile_ledger import RecompileLedger, Trigger
from lazyfx_server.lazy.torch_laziness import (
    SINGLETON_CLASS_NAME,
    TorchLazyGraphModule,
    laziness_is_refused,
    torch_lazy,
)


class LazyModule(TorchLazyGraphModule):
    """A GraphModule whose recompiles are recorded in a ledger. Created by `lazy_class`."""

    ledger: ClassVar[RecompileLedger]
    lock: ClassVar[AbstractContextManager[bool]]

    def recompile(self) -> None:  # type: ignore[override]
        """Marks the generated code as stale."""
        self.ledger.record_requested(self)
        type(self).forward = type(self)._lazy_forward  # noqa: SLF001 - our own class

    @property
    def stale(self) -> bool:
        """Whether the generated code is stale: torch's `_needs_recompile`."""
        return self._needs_recompile()

    def real_recompile(self) -> None:
        """Generates the code if it is stale."""
        with self.lock:
            super().real_recompile()

    def _real_recompile(self) -> PythonCode:
        with self.lock:
            start = perf_counter()
            with checked_generation(self.graph):
                generated = super()._real_recompile()
            seconds = perf_counter() - start
            self.ledger.record_performed(self, seconds, executed=True, where=_triggering_line())
            return generated

    def _recompile_submodules(self) -> list[Any]:
        # Children keep track of themselves; recompiling a parent would only
        # mark those that are up to date.
        return []

    def _lazy_forward(self, *args: Any, **kwargs: Any) -> Any:
        self.real_recompile()
        # Not self(...), as in torch: the hooks have already fired.
        return type(self).forward(self, *args, **kwargs)

    forward = _lazy_forward

    @property
    def code(self) -> str:
        """The generated code; generates it if it is stale."""
        with self.ledger.triggered_by("code"):
            return super().code

    def __str__(self) -> str:
        with self.ledger.triggered_by("code"):
            return super().__str__()

    def __reduce__(self) -> Any:
        with self.ledger.triggered_by("pickle"):
            return super().__reduce__()

    def __reduce_package__(self, exporter: Any) -> Any:
        with self.ledger.triggered_by("package"):
            return super().__reduce_package__(exporter)


class EagerModule(LazyModule):
    """A counted module that recompiles at once, as a plain GraphModule does."""

    def recompile(self) -> PythonCode:  # type: ignore[override]
        """Generates the code now."""
        self.ledger.record_requested(self)
        with self.ledger.triggered_by("eager"):
            return self._real_recompile()


def lazy_class(ledger: RecompileLedger, *, eager: bool = False) -> type[GraphModule]:
    """Creates the class of a job's modules: its instances record in `ledger`.

    Args:
        ledger: Records their recompiles.
        eager: They recompile at once, for consumers that cannot handle stale code.
    """
    base = EagerModule if eager else LazyModule

    class JobModule(base):  # type: ignore[misc, valid-type]
        pass

    JobModule.ledger = ledger
    JobModule.lock = threading.RLock()
    return JobModule


def make_lazy(module: GraphModule, ledger: RecompileLedger, *, eager: bool = False) -> GraphModule:
    """Makes a module lazy, and every GraphModule inside it; returns the same object.

    Nothing is copied and no recompile is counted: the objects change their class, so attributes,
    aliases and references are preserved. Code that a plain module had generated is marked as stale.

    Args:
        module: Any GraphModule. One that already records in `ledger` is left unchanged.
        ledger: Records its recompiles from now on.
        eager: Make it recompile at once instead.
    """
    job_class: type[GraphModule] | None = None
    for part in module.modules():
        if not isinstance(part, GraphModule) or _counts_in(part, ledger):
            continue
        job_class = job_class or lazy_class(ledger, eager=eager)
        _change_class(part, job_class)
        if isinstance(part, EagerModule):
            with ledger.triggered_by("eager"):
                part._real_recompile()  # noqa: SLF001 - our own class
    return module


@contextmanager
def lazy_job(ledger: RecompileLedger, *, eager: bool = False) -> Iterator[None]:
    """Makes every GraphModule built inside the block lazy and recorded in `ledger`.

    Covers modules that torch builds through its own helpers and those that call
    `GraphModule(...)` directly (CSEPass, `optimization.fuse`, a pattern's trace),
    in this thread, and in threads started with a copy of its context. Nothing remains of it after
    the block.

    Args:
        ledger: Records the recompiles of the modules.
        eager: The modules recompile at once.

    Raises:
        RuntimeError: Another job is running in this process. torch.fx is not
            thread-safe, so a process runs one job at a time.
    """
    if not _job_runs.acquire(blocking=False):
        raise RuntimeError("a process runs one lazy job at a time")
    job_class = lazy_class(ledger, eager=eager)
    original = GraphModule.__dict__["__new__"]

    def construct(cls: type[GraphModule], *args: Any, **kwargs: Any) -> GraphModule:
        plain = _declared_class(cls) in (GraphModule, TorchLazyGraphModule)
        if plain and _inside_job.get() and not laziness_is_refused():
            cls = job_class
        built: GraphModule = original.__func__(cls, *args, **kwargs)
        return built

    GraphModule.__new__ = staticmethod(construct)  # type: ignore[assignment, method-assign]
    inside = _inside_job.set(True)
    try:
        yield
    finally:
        _inside_job.reset(inside)
        GraphModule.__new__ = original  # type: ignore[method-assign]
        _job_runs.release()


def generate_source(
    module: GraphModule, ledger: RecompileLedger, trigger: Trigger
) -> GeneratedSource:
    """Generates a module's Python source, counted as one performed recompile per module.

    The source is generated but not executed, so the module stays lazy, and nothing is left in
    torch's cache of sources. The source is verified against its graph.

    Args:
        module: Lazy or plain.
        ledger: Records the recompile.
        trigger: The artifact that needs the source.

    Raises:
        SourceMismatchError: The source does not match the graph.
    """
    start = perf_counter()
    with ExitStack() as checks:
        for part in module.modules():
            if isinstance(part, GraphModule):
                checks.enter_context(checked_generation(part.graph))
        source = generate(module)
    seconds = perf_counter() - start
    with ledger.triggered_by(trigger):
        record_performed_together(module, ledger, seconds, executed=False)
    return source


def record_performed_together(
    module: GraphModule, ledger: RecompileLedger, seconds: float, *, executed: bool
) -> None:
    """Counts one recompile for a module and for each nested module; they share the seconds."""
    parts = [part for part in module.modules() if isinstance(part, GraphModule)]
    nodes = sum(len(part.graph.nodes) for part in parts)
    for part in parts:
        share = seconds * len(part.graph.nodes) / nodes
        ledger.record_performed(part, share, executed=executed)


# Whether a job is running in this process, and whether this context is part of it; no references to
# it.
_job_runs = threading.Lock()
_inside_job: ContextVar[bool] = ContextVar("lazyfx_inside_job", default=False)


# Code that only passes on the request for generated code.
_PASSES_ON = frozenset(
    (
        __file__,
        torch_lazy.__file__,
        torch.nn.modules.module.__file__,
        torch.fx.graph_module.__file__,
    )
)


def _triggering_line() -> str:
    """The line that needs generated code: the innermost frame outside this machinery."""
    frame = sys._getframe(1)  # noqa: SLF001 - the documented way to the caller's frame
    while frame.f_back is not None and frame.f_code.co_filename in _PASSES_ON:
        frame = frame.f_back
    path = PurePath(frame.f_code.co_filename)
    return f"{path.name}:{frame.f_lineno} in {frame.f_code.co_name}"


def _counts_in(module: GraphModule, ledger: RecompileLedger) -> bool:
    return isinstance(module, LazyModule) and module.ledger is ledger


def _declared_class(cls: type) -> type:
    """The class as its author wrote it, not the one that GraphModule creates for each object."""
    return next(c for c in cls.__mro__ if c.__qualname__.split(".")[-1] != SINGLETON_CLASS_NAME)


def _change_class(module: GraphModule, job_class: type[GraphModule]) -> None:
    written = _declared_class(type(module))
    eager = written in (GraphModule, TorchLazyGraphModule) or issubclass(written, LazyModule)
    bases = (job_class,) if eager else (job_class, written)
    singleton = type(SINGLETON_CLASS_NAME, bases, {})
    singleton.__name__ = type(module).__name__
    module.__class__ = singleton
