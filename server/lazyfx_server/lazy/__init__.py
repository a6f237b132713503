"""Lazy GraphModules: a recompile marks, the ledger counts, source is generated on demand."""

from lazyfx.assembly import GeneratedSource
from lazyfx_server.lazy.costs import FITTED, RecompileCost
from lazyfx_server.lazy.ledger import PerformedRecompile, RecompileLedger, ScopeCount
from lazyfx_server.lazy.module import (
    LazyModule,
    generate_source,
    lazy_class,
    lazy_job,
    make_lazy,
)

__all__ = [
    "FITTED",
    "GeneratedSource",
    "LazyModule",
    "PerformedRecompile",
    "RecompileCost",
    "RecompileLedger",
    "ScopeCount",
    "generate_source",
    "lazy_class",
    "lazy_job",
    "make_lazy",
]
