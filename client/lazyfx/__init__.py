"""Compile torch.fx graphs once, remotely, and only on demand."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

from lazyfx import errors
from lazyfx.errors import LazyfxError

if TYPE_CHECKING:
    from lazyfx.async_client import AsyncClient, connect_async
    from lazyfx.async_module import AsyncRemoteModule
    from lazyfx.backend import BackendReport, FallbackWarning, backend_report
    from lazyfx.blocking_client import Client, connect
    from lazyfx.blocking_module import RemoteModule
    from lazyfx.capture.saved_graphs import SavedGraph, load_graph, save_graph
    from lazyfx.explaining import Difference, Explanation, explain
    from lazyfx.report import Cache, PassReport, Recompiles, Report
    from lazyfx.shared.answers.answer_bounds import AnswerBounds
    from lazyfx.shared.pass_specs import (
        InputGuard,
        PassSpec,
        Rewrite,
        pass_spec,
        replace_pattern,
        until_stable,
    )
    from lazyfx.shared.picture import Picture
    from lazyfx.shared.wire import digest
    from lazyfx.shared.wire.targets.user_targets import allow_targets
    from lazyfx.trust.access import Tls
    from lazyfx.trust.verifying import Provenance

# gRPC's own handlers would restart its threads in forked children, where they read from the
# sockets of the parent: children crash, and the parent's calls break. gRPC reads this when it is
# imported; a value set by the user is kept. `lazyfx.calls.forking` replaces the handlers.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
# Failed handshakes are reported as errors; gRPC would also log each attempt to standard error.
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
    "AnswerBounds": "shared.answers.answer_bounds",
    "AsyncClient": "async_client",
    "AsyncRemoteModule": "async_module",
    "BackendReport": "backend",
    "Cache": "report",
    "Client": "blocking_client",
    "FallbackWarning": "backend",
    "Difference": "explaining",
    "Explanation": "explaining",
    "InputGuard": "shared.pass_specs",
    "PassReport": "report",
    "PassSpec": "shared.pass_specs",
    "Picture": "shared.picture",
    "Provenance": "trust.verifying",
    "Recompiles": "report",
    "RemoteModule": "blocking_module",
    "Report": "report",
    "Rewrite": "shared.pass_specs",
    "Tls": "trust.access",
    "SavedGraph": "capture.saved_graphs",
    "allow_targets": "shared.wire.targets.user_targets",
    "backend_report": "backend",
    "connect": "blocking_client",
    "connect_async": "async_client",
    "digest": "shared.wire",
    "explain": "explaining",
    "in_modules": "capture.splitting",
    "load_graph": "capture.saved_graphs",
    "pass_spec": "shared.pass_specs",
    "replace_pattern": "shared.pass_specs",
    "split_by": "capture.splitting",
    "until_stable": "shared.pass_specs",
    "save_graph": "capture.saved_graphs",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used.

    Worker processes import `lazyfx.shared.wire` and must not load gRPC, which the client needs.
    """
    home = _HOMES.get(name)
    if home is None:
        from lazyfx.shared.suggesting import closest

        meant = closest(name, _HOMES)
        hint = f"; did you mean {meant!r}?" if meant else ""
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}{hint}")
    value = getattr(importlib.import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
