"""The TCP connections of a server that is about to stop."""

from __future__ import annotations

import contextlib
import os
import socket
from pathlib import Path

_OPEN_FILES = Path("/dev/fd")


def cut_connections(port: int) -> int:
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
    with contextlib.suppress(OSError):
        for path in _OPEN_FILES.iterdir():
            with contextlib.suppress(OSError), _socket_of(int(path.name)) as connection:
                if _is_connection_to(port, connection):
                    connection.shutdown(socket.SHUT_RDWR)
                    count += 1
    return count


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


def _is_connection_to(port: int, found: socket.socket) -> bool:
    if found.family not in (socket.AF_INET, socket.AF_INET6) or found.type != socket.SOCK_STREAM:
        return False
    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    return not listens and found.getsockname()[1] == port
