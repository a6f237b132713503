"""The protocol between the server and a worker process: frames over a Unix socket.

A frame is one byte of kind, eight bytes of length (big-endian) and that many bytes. The server
sends JOB frames. The worker sends READY once it can take jobs, then STARTED and one of RESULT,
FAILED or TOO_LARGE for each job. During a job it may send CALL frames, each with a unique number
before the request; the server replies with the same number, as CALL_ANSWERED or, with the reason,
CALL_FAILED.
"""

from __future__ import annotations

import json
import socket
import struct
from enum import IntEnum
from typing import Final

HEADER: Final = struct.Struct("!BQ")
SMALL: Final = 1 << 16
"""Below this size, a copy is cheaper than another system call."""

MAX_MESSAGE_CHARACTERS: Final = 8192
CALL_NUMBER: Final = struct.Struct("!Q")
"""The number of a call, which precedes the request and its answer."""


class Kind(IntEnum):
    """The kind of a frame."""

    JOB = 1
    READY = 2
    STARTED = 3
    RESULT = 4
    FAILED = 5
    TOO_LARGE = 6
    START_FAILED = 7
    CALL = 8
    CALL_ANSWERED = 9
    CALL_FAILED = 10


def pack_error(error: BaseException) -> bytes:
    """The body of a FAILED or START_FAILED frame."""
    name = type(error).__qualname__
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - an exception's __str__ may do anything
        message = f"<unprintable: {type(broken).__qualname__}>"
    text = json.dumps([name, message[:MAX_MESSAGE_CHARACTERS]])
    return text.encode("ascii")


def unpack_error(body: bytes) -> tuple[str, str]:
    """Class name and message of a FAILED or START_FAILED frame.

    Raises:
        ValueError: The body was not written by `pack_error`.
    """
    name, message = json.loads(body)
    return str(name), str(message)


def send(connection: socket.socket, kind: Kind, body: bytes = b"") -> None:
    """Sends one frame over a blocking socket.

    Raises:
        OSError: The other side is gone.
    """
    header = HEADER.pack(kind, len(body))
    if len(body) <= SMALL:
        connection.sendall(header + body)
    else:
        connection.sendall(header)
        connection.sendall(body)


def receive(connection: socket.socket) -> tuple[int, bytes] | None:
    """Receives one frame from a blocking socket, or None at the end of the stream.

    Raises:
        OSError: The connection broke.
    """
    header = _exactly(connection, HEADER.size)
    if header is None:
        return None
    kind, length = HEADER.unpack(header)
    body = _exactly(connection, length)
    return None if body is None else (kind, bytes(body))


def _exactly(connection: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        count = connection.recv_into(view)
        if not count:
            return None
        view = view[count:]
    return buffer
