"""Leases: which of several servers makes an entry that all of them need.

A lease only saves work: whatever happens to it, an entry is right, because its key determines its
content. So a server that does not get an answer about a lease goes on without one. A lease ends by
itself a few seconds after its holder has stopped renewing it.

::

    16 bytes token | 16 bytes MAC of key, token and note | note

The note is what the holder tells the servers that wait. The MAC keeps whoever can write to the
store, but does not have the secret, from taking a lease; see `Leases.holder`.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass
from typing import Final

from lazyfx_server.store.circuit_breaker import CircuitBreaker
from lazyfx_server.store.contract import LeasingStore, StoreError

_TOKEN_BYTES: Final = 16
_MAC_BYTES: Final = 16
MAX_NOTE_BYTES: Final = 1024
# Servers with other settings may hold leases for longer than this one does.
MAX_LEASE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that this server holds.

    Attributes:
        key: The key of the entry.
        token: Random; shows that it is this server's.
    """

    key: str
    token: bytes


class Leases:
    """The leases of servers that share a store.

    Every method raises StoreError if there is no answer; it never takes longer than the breaker
    allows.

    Args:
        store: Keeps them.
        breaker: The breaker in front of that store.
        secret: What servers that share the store have in common.
        seconds: How long a lease stays that is not renewed.
    """

    def __init__(
        self, store: LeasingStore, breaker: CircuitBreaker, secret: bytes, seconds: float
    ) -> None:
        self._store = store
        self._breaker = breaker
        self._secret = secret
        self.seconds = seconds

    async def take(self, key: str) -> Lease | None:
        """Take the lease of an entry; None if another server has it."""
        lease = Lease(key, secrets.token_bytes(_TOKEN_BYTES))
        value = self._value(lease, b"")
        taken = await self._breaker.ask(
            lambda: self._store.take_lease(key, value, self.seconds),
            requests=self._store.requests_per_lease,
        )
        return lease if taken else None

    async def renew(self, lease: Lease, note: bytes) -> bool:
        """Keep a lease for longer; takes it again if it has ended.

        Args:
            lease: The lease.
            note: What `holder` returns on other servers; up to MAX_NOTE_BYTES.

        Returns:
            False if another server holds it by now.
        """
        value = self._value(lease, note[:MAX_NOTE_BYTES])
        return await self._breaker.ask(
            lambda: self._store.renew_lease(lease.key, lease.token, value, self.seconds),
            requests=self._store.requests_per_lease,
        )

    async def release(self, lease: Lease) -> None:
        """End a lease, unless another server has it by now."""
        await self._breaker.ask(lambda: self._store.release_lease(lease.key, lease.token))

    async def holder(self, key: str) -> bytes | None:
        """The note of the server that holds a lease; None if nobody does.

        Raises:
            StoreError: Also for a value that no server with the secret has written, and for one
                that would not end by itself.
        """
        found = await self._breaker.ask(lambda: self._store.read_lease(key))
        if found is None:
            return None
        value, seconds = found
        token, rest = value[:_TOKEN_BYTES], value[_TOKEN_BYTES:]
        mac, note = rest[:_MAC_BYTES], rest[_MAC_BYTES:]
        if not hmac.compare_digest(mac, self._mac(key, token, note)):
            raise StoreError(
                f"{self._breaker.name}: a lease was not written with this server's tenant secret"
            )
        if not 0 <= seconds <= MAX_LEASE_SECONDS:
            raise StoreError(f"{self._breaker.name}: a lease does not expire")
        return note

    def _value(self, lease: Lease, note: bytes) -> bytes:
        return lease.token + self._mac(lease.key, lease.token, note) + note

    def _mac(self, key: str, token: bytes, note: bytes) -> bytes:
        message = b"lease\0" + key.encode() + b"\0" + token + note
        return hmac.digest(self._secret, message, "sha256")[:_MAC_BYTES]
