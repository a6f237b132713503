"""Quotas: how much of the server one tenant may use over time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachetools import LRUCache

from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import OverloadedError
from lazyfx_server.settings.limits import QuotaLimits

_MINUTE, _HOUR = 60.0, 3600.0
_MAX_TENANTS = 65_536


class _Bucket:
    """A token bucket that fills at a steady rate up to the quota of one period."""

    def __init__(self, size: float, period: float, now: float) -> None:
        self._size = size
        self._rate = size / period
        self._level = size
        self._filled = now

    def wait(self, amount: float, now: float) -> float:
        """Seconds until this amount may be taken; 0 if now.

        More than the quota of a period may be taken if the bucket is full; then it is empty for
        longer.
        """
        self._fill(now)
        return max(0.0, (min(amount, self._size) - self._level) / self._rate)

    def take(self, amount: float, now: float) -> None:
        """Take an amount, even if it exceeds the level."""
        self._fill(now)
        self._level -= amount

    def _fill(self, now: float) -> None:
        self._level = min(self._size, self._level + (now - self._filled) * self._rate)
        self._filled = now


class Quotas:
    """Enforces the quotas of tenants.

    Args:
        limits: The quotas.
        clock: A monotonic clock in seconds.
    """

    def __init__(self, limits: QuotaLimits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._buckets: LRUCache[tuple[str, str], _Bucket] = LRUCache(3 * _MAX_TENANTS)

    def charge_request(self, tenant: Tenant) -> None:
        """Count a request.

        Raises:
            OverloadedError: The quota is exceeded; says when to retry.
        """
        if self._limits.quota_requests is not None:
            self._use(tenant, "requests", self._limits.quota_requests, _MINUTE, 1.0, "per minute")

    def charge_bytes(self, tenant: Tenant, size: int) -> None:
        """Count received bytes.

        Raises:
            OverloadedError: The quota is exceeded; says when to retry.
        """
        if self._limits.quota_bytes is not None:
            self._use(tenant, "bytes", self._limits.quota_bytes, _HOUR, float(size), "per hour")

    @contextmanager
    def charge_work(self, tenant: Tenant) -> Iterator[None]:
        """Count the seconds of the block; the excess is deducted later.

        Raises:
            OverloadedError: The quota is used up; says when to retry.
        """
        limit = self._limits.quota_compile_seconds
        self._use(tenant, "compile_seconds", limit, _HOUR, 0.0, "per hour")
        started = self._clock()
        try:
            yield
        finally:
            now = self._clock()
            bucket = self._bucket(tenant, "compile_seconds", limit, _HOUR, now)
            if bucket is not None:
                bucket.take(now - started, now)

    def _use(
        self,
        tenant: Tenant,
        name: str,
        limit: float | None,
        period: float,
        amount: float,
        words: str,
    ) -> None:
        now = self._clock()
        bucket = self._bucket(tenant, name, limit, period, now)
        if bucket is None:
            return
        if wait := bucket.wait(amount, now):
            raise OverloadedError(
                f"exceeds the quota of {limit:g} {name.replace('_', ' ')} {words} "
                f"(setting quota_{name})",
                retry_after=round(max(0.001, wait), 3),
            )
        bucket.take(amount, now)

    def _bucket(
        self, tenant: Tenant, name: str, limit: float | None, period: float, now: float
    ) -> _Bucket | None:
        if limit is None:
            return None
        place = (tenant.name, name)
        bucket: _Bucket | None = self._buckets.get(place)
        if bucket is None:
            bucket = self._buckets[place] = _Bucket(limit, period, now)
        return bucket
