"""Tenants: the tenant is part of every key, so that no tenant can access another's entries."""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass, field
from functools import lru_cache

from cachetools import LRUCache

ANONYMOUS = ""
"""Name of the only tenant of a server that does not identify callers."""

_MAX_REMEMBERED = 4096
_MAC_BYTES = 32


@dataclass(frozen=True, slots=True)
class Seal:
    """Marks records in a store with a MAC that only servers with the tenants' secret can compute.

    Its key differs from every tag by its derivation: tags are in signed statements, so callers see
    them.

    Attributes:
        key: The key of the MAC, 32 bytes.
    """

    key: bytes = field(repr=False)

    @classmethod
    def derived(cls, secret: bytes, purpose: bytes) -> Seal:
        """The seal for one purpose, of at most 16 bytes."""
        key = hashlib.sha256(secret).digest()
        return cls(hashlib.blake2b(key=key, person=purpose, digest_size=32).digest())

    def of(self, owner: bytes) -> Seal:
        """The seal for one owner's records."""
        return Seal(hmac.digest(self.key, owner, "sha256"))

    def close(self, place: str, record: bytes) -> bytes:
        """A record to store under `place`, with its MAC."""
        return self._mac(place, record) + record

    def open(self, place: str, stored: bytes) -> bytes | None:
        """The record, or None if it was not sealed with this key for this place."""
        mark, record = stored[:_MAC_BYTES], stored[_MAC_BYTES:]
        return record if hmac.compare_digest(mark, self._mac(place, record)) else None

    def _mac(self, place: str, record: bytes) -> bytes:
        return hmac.digest(self.key, b"record\0" + place.encode() + b"\0" + record, "sha256")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant: its graphs and results are isolated from those of all others.

    Another tenant's key is looked up under a name that does not exist, so it is answered like an
    unknown key, in the same steps.

    Attributes:
        name: For people and quotas; not in metrics.
        tag: HMAC of the name, 32 bytes; represents the tenant in keys and statements, so the
            tenant's clients can see it.
        seal: For the tenant's records in the store.
    """

    name: str
    tag: bytes
    seal: Seal

    def blob(self, sha256: bytes) -> str:
        """Store key of the tenant's bytes with this SHA-256."""
        return f"blobs/{_opaque_key(self.tag, b'blob', sha256)}"

    def part(self, sha256: bytes, size: int, number: int) -> str:
        """Store key of a piece of the tenant's unfinished bytes with this SHA-256 and size."""
        value = b"part\0" + number.to_bytes(8, "big") + size.to_bytes(8, "big") + sha256
        return f"uploads/{hmac.digest(self.tag, value, 'sha256').hex()}"

    def module(self, key: bytes) -> str:
        """Store key of the tenant's compiled module with this key."""
        return f"modules/{_opaque_key(self.tag, b'module', key)}"

    def request(self, token: bytes) -> str:
        """Store key of the tenant's request with this token."""
        return f"requests/{_opaque_key(self.tag, b'request', token)}"

    def job(self, digest: bytes) -> str:
        """Store key of what the tenant's job with this digest asked for."""
        return f"jobs/{_opaque_key(self.tag, b'job', digest)}"


# Hits look up the same names repeatedly. The cache reveals nothing across tenants, because the tag
# is part of its key.
@lru_cache(maxsize=2 * _MAX_REMEMBERED)
def _opaque_key(tag: bytes, kind: bytes, value: bytes) -> str:
    return hmac.digest(tag, kind + b"\0" + value, "sha256").hex()


class Tenants:
    """Creates tenants by name.

    Args:
        secret: The key of the tags; with it, names can be guessed from tags.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._seal = Seal.derived(secret, b"tenant records")
        self._known: LRUCache[str, Tenant] = LRUCache(_MAX_REMEMBERED)

    def named(self, name: str) -> Tenant:
        """The tenant of this name."""
        tenant: Tenant | None = self._known.get(name)
        if tenant is None:
            tag = hmac.digest(self._secret, name.encode(), "sha256")
            tenant = Tenant(name, tag, self._seal.of(name.encode()))
            self._known[name] = tenant
        return tenant
