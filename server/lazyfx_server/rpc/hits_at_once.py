"""Answers hits by token before anything is set up for a call.

A hit by token is the most frequent call by far, and all that it needs is in memory: it is charged,
counted and answered in one step, without waiting. So it needs no deadline, does not count as a call
in flight, and holds no memory. What is set up for a call that may wait would cost a hit a quarter
more, most of it for code and data that are not in the processor's caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.catalog import CompiledModule
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.request import TOKEN_BYTES
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import OverloadedError
from lazyfx_server.telemetry import DeferredObserver

# The tag and the length of a token: the first bytes of a request that is nothing but a token.
_BEGIN: Final = pb.CompileRequest(request_token=bytes(TOKEN_BYTES)).SerializeToString()[
    :-TOKEN_BYTES
]
_BEGIN_BYTES: Final = len(_BEGIN)
_BYTES: Final = _BEGIN_BYTES + TOKEN_BYTES


class HitsAtOnce:
    """Answers the calls of Compile that need nothing but a lookup in memory.

    Args:
        find: Returns the module that a tenant's token stands for, if it is in memory and fresh.
        quotas: Quotas of tenants.
        observer: Counts the hits.
    """

    def __init__(
        self,
        find: Callable[[bytes, Tenant], CompiledModule | None],
        quotas: Quotas,
        observer: DeferredObserver,
    ) -> None:
        self._find = find
        self._quotas = quotas
        self._observer = observer

    def answer(self, data: bytes, tenant: Tenant) -> bytes | None:
        """The answer to a call.

        Args:
            data: The request.
            tenant: The identified caller.

        Returns:
            The bytes of a CompileResponse; None if the call has to be served like any other, which
            also says what is wrong with it.
        """
        arrived = time.perf_counter()
        if len(data) != _BYTES or not data.startswith(_BEGIN):
            return None
        module = self._find(data[_BEGIN_BYTES:], tenant)
        if module is None:
            return None
        try:
            # In this order, what is charged twice if it is refused is a few bytes and no request.
            self._quotas.charge_bytes(tenant, _BYTES)
            self._quotas.charge_request(tenant)
        except OverloadedError:
            return None
        spent = time.perf_counter() - arrived
        self._observer.hit(spent, module.report.seconds, tenant.name)
        return module.hit
