"""Compile torch.fx graphs once, somewhere else, and only when somebody asks."""

from lazyfx.client import AsyncClient, connect_async
from lazyfx.module import AsyncRemoteModule
from lazyfx.passes import PassSpec, pass_spec, replace_pattern
from lazyfx.report import Cache, PassReport, Recompiles, Report
from lazyfx.sync import Client, Picture, RemoteModule, connect
from lazyfx.wire import digest

__version__ = "0.1.0"

__all__ = [
    "AsyncClient",
    "AsyncRemoteModule",
    "Cache",
    "Client",
    "PassReport",
    "PassSpec",
    "Picture",
    "Recompiles",
    "RemoteModule",
    "Report",
    "__version__",
    "connect",
    "connect_async",
    "digest",
    "pass_spec",
    "replace_pattern",
]
