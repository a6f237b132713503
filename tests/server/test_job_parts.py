"""A compile job in parts is the message that protobuf would have written."""

from __future__ import annotations

import pytest

from lazyfx_server.compiling.dispatch.job_parts import CompileParts
from lazyfx_server.v1 import worker_pb2 as worker


@pytest.mark.parametrize("size", [0, 1, 127, 128, 300, 2**14 - 1, 2**14, 2**21 + 5])
def test_parts_are_the_message(size: int) -> None:
    body = bytes(i % 251 for i in range(min(size, 1000))) * (size // 1000 or 1)
    values = [(0, 0, b""), (1, 300, memoryview(body)), (70_000, 2, b"\x00" * size)]
    job = worker.CompileJob(eager=True, plugins=["a:b"])
    whole = worker.CompileJob()
    whole.CopyFrom(job)
    whole.body = body
    for graph, attribute, data in values:
        whole.values.add(graph=graph, attribute=attribute, data=bytes(data))

    parts = CompileParts(job, memoryview(body), values).serialized()

    assert worker.Job.FromString(b"".join(parts)) == worker.Job(compile=whole)


def test_large_parts_are_not_copied() -> None:
    body, value = bytes(2**20), bytes(2**20)
    parts = CompileParts(worker.CompileJob(), body, [(0, 0, value)]).serialized()
    assert any(part is body for part in parts)
    assert any(part is value for part in parts)
