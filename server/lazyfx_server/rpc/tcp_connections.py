"""The TCP connections of a server that is about to stop."""

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
# Linux's name for "look at packets with this program"; Python has none.
_SO_ATTACH_FILTER: Final = 26
# One instruction of the packet filter: take nothing of any packet.
_DROP: Final = struct.pack("@HBBI", 0x06, 0, 0, 0)


def refuse_connections(port: int) -> None:
    """Let no new connection to a port of this process come about.

    gRPC stops to listen only when it also ends the calls that are under way.

    Args:
        port: That the server listens on.
    """
    program = ctypes.create_string_buffer(_DROP, len(_DROP))
    attached = struct.pack("@HP", 1, ctypes.addressof(program))
    for found in _sockets_on(port, listening=True):
        with contextlib.suppress(OSError):  # another system than Linux
            found.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, attached)


def drop_connections(port: int) -> int:
    """End the connections to a port of this process, as a network would.

    gRPC answers calls that arrive while it shuts down with CANCELLED, which looks as if the caller
    had given up. Calls on a connection that ends fail with UNAVAILABLE, and clients try again.
    What was written before still arrives.

    Args:
        port: That the server listens on.

    Returns:
        How many connections there were; 0 also where open files cannot be listed.
    """
    count = 0
    for found in _sockets_on(port, listening=False):
        with contextlib.suppress(OSError):
            found.shutdown(socket.SHUT_RDWR)
            count += 1
    return count


def _sockets_on(port: int, *, listening: bool) -> Iterator[socket.socket]:
    """Second handles on the TCP sockets of this process that have this port."""
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
    """A second handle on an open file, if it is a socket.

    Raises:
        OSError: It is not, or it has just been closed.
    """
    copy = os.dup(number)
    try:
        return socket.socket(fileno=copy)
    except BaseException:
        os.close(copy)
        raise
