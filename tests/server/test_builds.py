"""C++ compiles for native jobs: transient failures are not permanent."""

from __future__ import annotations

import asyncio
from pathlib import Path

from inline_executor import InlineExecutor

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.work_area import WorkArea
from lazyfx_server.telemetry import Observers
from lazyfx_server.v1 import worker_pb2 as worker

COMPILER = Compiler("g++", "/usr/bin/g++", {}, (), b"", (), (), ())
REQUEST = worker.BuildRequest(
    kind=worker.BUILD_KIND_OBJECT, source=b"int x;", header="torch/csrc/inductor/cpp_prefix.h"
)


def header_of(job: bytes) -> bytes:
    """In place of a compile worker: answers with the header that it was given."""
    return worker.BuildResult(
        output=worker.BuildJob.FromString(job).header.encode()
    ).SerializeToString()


def test_a_header_is_precompiled_once_there_is_room_for_it(tmp_path: Path) -> None:
    async def scenario() -> list[bytes]:
        executor = InlineExecutor(header_of)
        await executor.start()
        area = WorkArea(tmp_path / "area")
        builds = Builds(executor, COMPILER, 60.0, area, Observers())
        (area.root / "headers").touch()  # no folder can be made there, as on a full disk
        try:
            first = (await builds.build(REQUEST, [], builds.session())).result
            (area.root / "headers").unlink()
            second = (await builds.build(REQUEST, [], builds.session())).result
        finally:
            await executor.close()
            area.close()
        return [first.output, second.output]

    first, second = asyncio.run(scenario())
    assert first == b""
    assert second.endswith(b"header.h")
