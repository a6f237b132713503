"""The parts of a server and how they are connected: each group is made from those before it."""

from lazyfx_server.assembling.compile_parts import Compiling
from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.assembling.exported_state import export_state
from lazyfx_server.assembling.pass_tables import PassTables
from lazyfx_server.assembling.rpc_parts import Rpc, tls_files
from lazyfx_server.assembling.store_parts import Storage
from lazyfx_server.assembling.worker_parts import Workers

__all__ = [
    "Compiling",
    "Counts",
    "PassTables",
    "Rpc",
    "Storage",
    "Workers",
    "export_state",
    "tls_files",
]
