"""What a server hands to its native workers, without importing Inductor itself."""

from __future__ import annotations

from lazyfx_server.native.confinement import Confinement
from lazyfx_server.native.toolchain.compiler import Compiler


def run_native_job(compiler: Compiler, confinement: Confinement, data: bytes) -> bytes:
    """See `lazyfx_server.native.job.run_native_job`, which `native.preload` has imported."""
    from lazyfx_server.native.job import run_native_job as run

    return run(compiler, confinement, data)
