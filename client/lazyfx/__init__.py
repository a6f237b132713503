"""Compile torch.fx graphs once, remotely, and only on demand."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from lazyfx import errors
from lazyfx.errors import LazyfxError

if TYPE_CHECKING:
    from lazyfx.access import Tls
    from lazyfx.answers.bounds import AnswerBounds
    from lazyfx.backend import BackendReport, FallbackWarning, backend_report
    from lazyfx.client import AsyncClient, connect_async
    from lazyfx.explaining import Difference, Explanation, explain
    from lazyfx.module import AsyncRemoteModule
    from lazyfx.passes import (
        InputGuard,
        PassSpec,
        Rewrite,
        pass_spec,
        replace_pattern,
        until_stable,
    )
    from lazyfx.picture import Picture
    from lazyfx.report import Cache, PassReport, Recompiles, Report
    from lazyfx.saving import SavedGraph, load_graph, save_graph
    from lazyfx.sync import Client, connect
    from lazyfx.sync_module import RemoteModule
    from lazyfx.verifying import Provenance
    from lazyfx.wire import digest
    from lazyfx.wire.more_targets import allow_targets

# gRPC's own handlers would restart its threads in forked children, where they read from the
# sockets of the parent: children crash, and the parent's calls break. gRPC reads it when it is
# imported; whoever has set it is let have it. See `lazyfx.forking` for what holds in its place.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Handshakes that fail are told in errors; gRPC would log each try to standard error as well.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

__version__ = "0.1.0"

__all__ = [
    "AnswerBounds",
    "AsyncClient",
    "AsyncRemoteModule",
    "BackendReport",
    "Cache",
    "Client",
    "Difference",
    "Explanation",
    "FallbackWarning",
    "InputGuard",
    "LazyfxError",
    "PassReport",
    "PassSpec",
    "Picture",
    "Provenance",
    "Recompiles",
    "RemoteModule",
    "Report",
    "Rewrite",
    "SavedGraph",
    "Tls",
    "__version__",
    "allow_targets",
    "backend_report",
    "connect",
    "connect_async",
    "digest",
    "errors",
    "explain",
    "in_modules",
    "load_graph",
    "pass_spec",
    "replace_pattern",
    "save_graph",
    "split_by",
    "until_stable",
]

_HOMES = {
    "AnswerBounds": "answers.bounds",
    "AsyncClient": "client",
    "AsyncRemoteModule": "module",
    "BackendReport": "backend",
    "Cache": "report",
    "Client": "sync",
    "FallbackWarning": "backend",
    "Difference": "explaining",
    "Explanation": "explaining",
    "InputGuard": "passes",
    "PassReport": "report",
    "PassSpec": "passes",
    "Picture": "picture",
    "Provenance": "verifying",
    "Recompiles": "report",
    "RemoteModule": "sync_module",
    "Report": "report",
    "Rewrite": "passes",
    "Tls": "access",
    "SavedGraph": "saving",
    "allow_targets": "wire.more_targets",
    "backend_report": "backend",
    "connect": "sync",
    "connect_async": "client",
    "digest": "wire",
    "explain": "explaining",
    "in_modules": "splitting",
    "load_graph": "saving",
    "pass_spec": "passes",
    "replace_pattern": "passes",
    "split_by": "splitting",
    "until_stable": "passes",
    "save_graph": "saving",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Worker processes import `lazyfx.wire` and must not load gRPC, which the client needs.
    """
    home = _HOMES.get(name)
    if home is None:
        from lazyfx.suggesting import closest

        meant = closest(name, _HOMES)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
