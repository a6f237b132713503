"""Lazy GraphModules: a recompile marks, the ledger counts, source is generated on demand."""

from lazyfx.assembly import GeneratedSource
from lazyfx_server.lazy.ledger import (
    PerformedRecompile,
    RecompileLedger,
    ScopeCount,
    estimate_seconds,
)
from lazyfx_server.lazy.module import generate_source, lazy_class, lazy_job, make_lazy

__all__ = [
    "GeneratedSource",
    "PerformedRecompile",
    "RecompileLedger",
    "ScopeCount",
    "estimate_seconds",
    "generate_source",
    "lazy_class",
    "lazy_job",
    "make_lazy",
]
