"""The job function of native workers, for the server, which does not import Inductor itself."""

from __future__ import annotations

from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.toolchain.compiler import Compiler


def run_native_job(compiler: Compiler, confinement: Confinement, data: bytes) -> bytes:
    """See `native_job.run_native_job`; `inductor_preload` has imported it."""
    from lazyfx_server.jobs.native.native_job import run_native_job as run

    return run(compiler, confinement, data)
