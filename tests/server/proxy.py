"""A TCP proxy in front of a server that counts what passes, and can break connections."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator


class Proxy:
    """Passes bytes on.

    Attributes:
        address: Where it listens.
        target: The server; another one gets the connections that begin later.
        sent: Bytes that clients have sent, protocol included.
        received: Bytes that clients have received.
        cut_after: Break all connections, once, when this many bytes have been sent.
    """

    def __init__(self, target: str) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = self.received = 0
        self.cut_after: int | None = None
        self._sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.close()
        self._break()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                host, _, port = self.target.rpartition(":")
                try:
                    server = socket.create_connection((host, int(port)))
                except ConnectionRefusedError:
                    client.close()
                    continue
                self._sockets += [client, server]
                for source, sink, counts in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self._pass_on, args=(source, sink, counts), daemon=True
                    ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, counts: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                if not counts:
                    self.received += len(data)
                if counts:
                    self.sent += len(data)
                    if self.cut_after is not None and self.sent >= self.cut_after:
                        self.cut_after = None
                        # What was passed on waits in buffers; a busy server takes some of it.
                        time.sleep(0.5)
                        self._break()
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _break(self) -> None:
        for end in self._sockets:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self._sockets.clear()


@contextlib.contextmanager
def proxied(target: str) -> Iterator[Proxy]:
    """A proxy in front of a server."""
    proxy = Proxy(target)
    try:
        yield proxy
    finally:
        proxy.close()
