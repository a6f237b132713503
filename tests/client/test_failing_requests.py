"""Streams whose requests end with an error: the caller gets that error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from lazyfx.calls.async_driver import AsyncDriver
from lazyfx.calls.blocking_driver import BlockingDriver
from lazyfx.flows import Flow, Next, Open
from lazyfx.trust.access import Access
from lazyfx.v1 import compiler_pb2 as pb

_ACCESS = Access()


def _requests() -> Iterator[bytes]:
    yield pb.CompileBatchRequest(request_id=1).SerializeToString()
    raise ValueError("no more of them")


def _stream() -> Flow[None]:
    call = yield Open("CompileBatch", _requests(), 60.0)
    try:
        while (yield Next(call)) is not None:
            pass
    finally:
        call.cancel()


def test_a_blocking_caller_gets_the_error(server: Any) -> None:
    driver = BlockingDriver(server.address, _ACCESS)
    with pytest.raises(ValueError, match="no more of them"):
        driver.run(_stream())
    driver.close()


async def test_an_asynchronous_caller_gets_the_error(server: Any) -> None:
    driver = AsyncDriver(server.address, _ACCESS)
    with pytest.raises(ValueError, match="no more of them"):
        await driver.run(_stream())
    await driver.close()
