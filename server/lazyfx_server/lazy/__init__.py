"""Lazy GraphModules: a recompile is counted and marks code stale; code is generated on demand."""

from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx_server.lazy.lazy_module import (
    LazyModule,
    generate_source,
    lazy_class,
    lazy_job,
    make_lazy,
)
from lazyfx_server.lazy.recompile_costs import FITTED, RecompileCost
from lazyfx_server.lazy.recompile_ledger import PerformedRecompile, RecompileLedger, ScopeCount

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
