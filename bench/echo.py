"""A bare grpc.aio echo in its own process: the cost of a call without a service behind it.

The server responds with as many bytes as the first four bytes of the request say. There are no
message classes, no interceptors and almost no handler code. `python -m bench.echo` runs it and
prints its address.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from functools import lru_cache
from typing import Any

import grpc
import grpc.aio

from lazyfx_server.rpc.grpc_server import KEEPALIVE

METHOD = "/bench.Echo/Echo"
MAX_MESSAGE_BYTES = 64 * 2**20
_HEADER_BYTES = 4


def payload(request_bytes: int, response_bytes: int) -> bytes:
    """A request of `request_bytes` bytes for a response of `response_bytes` bytes."""
    header = response_bytes.to_bytes(_HEADER_BYTES, "little")
    return header.ljust(max(request_bytes, _HEADER_BYTES), b"x")


@lru_cache(maxsize=16)
def _answer(size: int) -> bytes:
    return b"y" * size


async def _echo(request: bytes, _context: object) -> bytes:
    return _answer(int.from_bytes(request[:_HEADER_BYTES], "little"))


async def _serve() -> None:
    options = [
        *KEEPALIVE,
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ]
    server = grpc.aio.server(options=options)
    handler: Any = grpc.unary_unary_rpc_method_handler(_echo)
    _, service, method = METHOD.split("/")
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler(service, {method: handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"127.0.0.1:{port}", flush=True)
    await server.wait_for_termination()


def start_echo() -> tuple[subprocess.Popen[str], str]:
    """Start the server in its own process; returns the process and its address."""
    command = [sys.executable, "-m", "bench.echo"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    if not address:
        process.kill()
        raise RuntimeError("the echo server did not start")
    return process, address


if __name__ == "__main__":
    try:
        import uvloop
    except ImportError:
        asyncio.run(_serve())
    else:
        uvloop.run(_serve())
