"""A TCP link to a server that can be cut, or swallow everything."""

from __future__ import annotations

import contextlib
import socket
import threading


class Link:
    """Passes bytes on between clients and a server.

    Args:
        port: The server's port on this machine.

    Attributes:
        address: Where clients connect.
    """

    def __init__(self, port: int) -> None:
        self._target = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock = threading.Lock()
        self._ends: set[socket.socket] = set()
        self._open = threading.Event()
        self._open.set()
        threading.Thread(target=self._accept, name="chaos-link", daemon=True).start()

    def cut(self) -> None:
        """Break all connections; new ones can be made at once."""
        with self._lock:
            ends, self._ends = self._ends, set()
        for end in ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def swallow(self) -> None:
        """Pass nothing on, without an error, until `resume`."""
        self._open.clear()

    def resume(self) -> None:
        """Pass on what was held back."""
        self._open.set()

    def close(self) -> None:
        """Stop listening, and break all connections."""
        self._listener.close()
        self.resume()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = socket.create_connection(self._target, timeout=5)
                except OSError:
                    client.close()
                    continue
                server.settimeout(None)
                with self._lock:
                    self._ends |= {client, server}
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(
                        target=self._pass_on, args=(source, sink), name="chaos-link", daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                self._open.wait()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        with self._lock:
            self._ends -= {source, sink}
