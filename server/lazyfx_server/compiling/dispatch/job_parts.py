"""Serializes a compile job without copying its large parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from lazyfx_server.v1 import worker_pb2 as worker

Buffer = bytes | memoryview

_JOB: Final = worker.Job.DESCRIPTOR.fields_by_name
_COMPILE: Final = worker.CompileJob.DESCRIPTOR.fields_by_name
_VALUE: Final = worker.TensorValue.DESCRIPTOR.fields_by_name
_LENGTH_DELIMITED: Final = 2


@dataclass(frozen=True, slots=True)
class CompileParts:
    """A compile job in parts.

    Attributes:
        job: Everything but the body and the values.
        body: The graph.
        values: Tensors that passes read: graph, attribute, bytes.
    """

    job: worker.CompileJob
    body: Buffer
    values: Sequence[tuple[int, int, Buffer]] = ()

    def serialized(self) -> list[Buffer]:
        """The bytes of a `worker.Job`, in parts that concatenate to the message.

        Fields of a protobuf message may be in any order, and a submessage is its length and its
        fields, so large fields can be passed as they are in memory. protobuf would copy a body of
        32 MB three times, blocking the event loop each time.
        """
        parts: list[Buffer] = [self.job.SerializeToString()]
        parts += [_head(_COMPILE["body"].number, len(self.body)), self.body]
        for graph, attribute, data in self.values:
            small = worker.TensorValue(graph=graph, attribute=attribute).SerializeToString()
            small += _head(_VALUE["data"].number, len(data))
            parts += [_head(_COMPILE["values"].number, len(small) + len(data)) + small, data]
        whole = sum(len(part) for part in parts)
        return [_head(_JOB["compile"].number, whole), *parts]


def _head(field: int, length: int) -> bytes:
    """Tag and length of a length-delimited field."""
    return _varint(field << 3 | _LENGTH_DELIMITED) + _varint(length)


def _varint(value: int) -> bytes:
    written = bytearray()
    while value >= 0x80:
        written.append(value & 0x7F | 0x80)
        value >>= 7
    written.append(value)
    return bytes(written)
