"""Bounds the bytes of requests in memory, in total and per tenant."""

from __future__ import annotations

from collections import Counter
from types import TracebackType

from typing_extensions import Self

from lazyfx_server.errors import OverloadedError
from lazyfx_server.settings.limits import CallLimits

# Requests up to this size are not counted: hits are admitted even if others fill the memory.
UNCOUNTED_BYTES = 16 * 1024
_RETRY_SECONDS = 1.0


class TenantBytes:
    """Byte counts in total and per tenant."""

    def __init__(self) -> None:
        self.all = 0
        self._by_tenant: Counter[str] = Counter()

    def of(self, tenant: str) -> int:
        """Bytes of one tenant."""
        return self._by_tenant[tenant]

    def add(self, tenant: str, size: int) -> None:
        """Count bytes."""
        self.all += size
        self._by_tenant[tenant] += size

    def remove(self, tenant: str, size: int) -> None:
        """Stop counting bytes."""
        self.all -= size
        self._by_tenant[tenant] -= size
        if not self._by_tenant[tenant]:
            del self._by_tenant[tenant]


class MemoryHold:
    """Counts the bytes of one request while it is in use.

    Each use is a `with` block; uses may overlap, and the last one releases the bytes. A flight
    continues after the call that started it is cancelled, and uses them until it ends.
    """

    __slots__ = ("_bytes", "_held", "_tenant", "_uses")

    def __init__(self, held: RequestMemory, tenant: str, size: int) -> None:
        self._held = held
        self._tenant = tenant
        self._bytes = size
        self._uses = 0

    def __enter__(self) -> Self:
        if not self._uses:
            self._held.add(self._tenant, self._bytes)
        self._uses += 1
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._uses -= 1
        if not self._uses:
            self._held.remove(self._tenant, self._bytes)


class RequestMemory:
    """Bounds the bytes of queued and running requests.

    Args:
        limits: Bounds on calls.
    """

    def __init__(self, limits: CallLimits) -> None:
        self._of_all = limits.bound("max_held_bytes")
        self._of_one = limits.bound("max_held_bytes_per_tenant")
        self._counted = TenantBytes()

    @property
    def bytes(self) -> int:
        """Bytes currently held."""
        return self._counted.all

    def hold(self, tenant: str, size: int) -> MemoryHold:
        """A hold for a request of this size; nothing is counted before it is entered."""
        return MemoryHold(self, tenant, 0 if size <= UNCOUNTED_BYTES else size)

    def add(self, tenant: str, size: int) -> None:
        """Count bytes.

        Raises:
            OverloadedError: They exceed a bound; says when to retry.
        """
        if not size:
            return
        for held, bound in (
            (self._counted.of(tenant), self._of_one),
            (self._counted.all, self._of_all),
        ):
            # A single request is admitted whatever its size: max_message_bytes bounds it.
            if held and held + size > bound.most:
                raise OverloadedError(
                    f"requests in flight hold {held} bytes; {size} more would exceed "
                    f"{bound.most}{bound}",
                    retry_after=_RETRY_SECONDS,
                )
        self._counted.add(tenant, size)

    def remove(self, tenant: str, size: int) -> None:
        """Stop counting bytes."""
        if size:
            self._counted.remove(tenant, size)
