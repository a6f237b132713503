"""Whose call is being served, and what it is charged for.

The interceptor identifies the caller of each call once, and charges what it can know: a call, and
the bytes of its request. What arrives on a stream is charged by what reads the stream, through the
same object: a request of a batch that is over a quota is answered, and does not end the stream; and
of a chunk only the bytes of the tensor count, which are known when the chunk has been parsed. The
seconds of a job are charged where they are spent (`Quotas.charge_work`): the job belongs to all who
wait for it, and may go on when the call that started it has ended.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.tenants import Tenant

# Methods whose calls are charged as requests, and those whose bytes are charged, too.
_CHARGED: Final = frozenset(
    {"Compile", "GetArtifact", "FindMissingBlobs", "UploadBlobs", "Prefetch", "RememberJob"}
)
_CHARGED_BYTES: Final = frozenset({"Compile", "GetArtifact", "RememberJob"})


@dataclass(frozen=True, slots=True)
class Caller:
    """The identified caller of a call.

    Attributes:
        tenant: Whose call it is.
        quotas: What the tenant may use.
    """

    tenant: Tenant
    quotas: Quotas

    def charge_call(self, method: str, size: int) -> None:
        """Charge a call as it arrives.

        Args:
            method: Name of the method.
            size: Bytes of its request; 0 for a stream.

        Raises:
            OverloadedError: A quota is exceeded; says when to try again.
        """
        if method in _CHARGED:
            self.quotas.charge_request(self.tenant)
        if method in _CHARGED_BYTES:
            self.quotas.charge_bytes(self.tenant, size)

    def charge_batched(self, size: int) -> None:
        """Charge one request of a batch.

        Raises:
            OverloadedError: A quota is exceeded; says when to try again.
        """
        self.charge_call("Compile", size)

    def charge_chunk(self, size: int) -> None:
        """Charge the bytes of a chunk of a tensor.

        Raises:
            OverloadedError: A quota is exceeded; says when to try again.
        """
        self.quotas.charge_bytes(self.tenant, size)


_CALLER: ContextVar[Caller] = ContextVar("lazyfx_caller")
"""The caller of the call that this task serves; each call has a task of its own."""


def enter(caller: Caller) -> None:
    """Begin to serve a call of this caller; only the interceptor does."""
    _CALLER.set(caller)


def current_caller() -> Caller:
    """The caller of the call that is being served."""
    return _CALLER.get()


def caller_name() -> str:
    """The name of the tenant whose call is being served; empty before it is known."""
    caller = _CALLER.get(None)
    return "" if caller is None else caller.tenant.name
