"""Prepares the fork server. It imports this module first; nothing else may.

multiprocessing imports the parent's main script into every child, so that
functions defined there can be found. Job functions live in modules, and the
script that started the server would only cost each worker its imports (the
command line, gRPC). There is no public switch for it, so it is switched off
here, in a process that does nothing but fork workers.
"""

from __future__ import annotations

import multiprocessing.spawn

import lazyfx_server.execution.worker_loop  # noqa: F401 - imported once here, not in each worker

for _name in ("_fixup_main_from_name", "_fixup_main_from_path"):
    if hasattr(multiprocessing.spawn, _name):
        setattr(multiprocessing.spawn, _name, lambda _: None)
