"""Closes the TCP connections of a stopping server."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_OPEN_FILES: Final = Path("/dev/fd")
# Attaches a packet filter on Linux; Python does not define it.
_SO_ATTACH_FILTER: Final = 26
# A packet filter of one instruction that drops every packet.
_DROP: Final = struct.pack("@HBBI", 0x06, 0, 0, 0)


def refuse_connections(port: int) -> None:
    """Refuse new connections to a port of this process.

    gRPC stops listening only when it also cancels running calls.

    Args:
        port: The server's port.
    """
    program = ctypes.create_string_buffer(_DROP, len(_DROP))
    attached = struct.pack("@HP", 1, ctypes.addressof(program))
    for found in _sockets_on(port, listening=True):
        with contextlib.suppress(OSError):  # not Linux
            found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)


def drop_connections(port: int) -> int:
    """Close the connections to a port of this process, like a network failure.

    gRPC answers calls that arrive during shutdown with CANCELLED, as if the caller had given up.
    Calls on a closed connection fail with UNAVAILABLE, and clients retry. Data written before still
    arrives.

    Args:
        port: The server's port.

    Returns:
        The number of connections; also 0 if open files cannot be listed.
    """
    count = 0
    for found in _sockets_on(port, listening=False):
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def _sockets_on(port: int, *, listening: bool) -> Iterator[socket.socket]:
    """Duplicated handles of this process's TCP sockets with this port."""
    try:
        numbers = [int(path.name) for path in _OPEN_FILES.iterdir()]
    except OSError:
        return
    for number in numbers:
        with contextlib.suppress(OSError), _socket_of(number) as found:
            if (
                found.family in (socket.AF_INET, socket.AF_INET6)
                and found.type == socket.SOCK_STREAM
                and found.getsockname()[1] == port
                and bool(found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) is listening
            ):
                yield found


def _socket_of(number: int) -> socket.socket:
    """A duplicated handle of an open file, if it is a socket.

    Raises:
        OSError: It is not, or it was just closed.
    """
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
