"""`torch.compile(model, backend="lazyfx")`: compiles on a server, or locally if there is none.

dynamo finds `compile_graph` through the entry point "lazyfx" of the group
"torch_dynamo_backends".
"""

from __future__ import annotations

from lazyfx.backend.dynamo_entry import compile_graph
from lazyfx.backend.fallback_report import (
    BackendReport,
    FallbackWarning,
    GraphReport,
    backend_report,
    reset_backend_report,
)
from lazyfx.backend.options import BackendOptions
from lazyfx.backend.sessions import close_sessions

__all__ = [
    "BackendOptions",
    "BackendReport",
    "FallbackWarning",
    "GraphReport",
    "backend_report",
    "close_sessions",
    "compile_graph",
    "reset_backend_report",
]
