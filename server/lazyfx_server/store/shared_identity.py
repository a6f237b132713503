"""Servers that share a store must share their secrets: the first one leaves its mark.

With another tenant secret a server would find none of the others' entries, and with other signing
keys it would make every artifact again, so each is told at its start and not by its bills. The
mark holds fingerprints and public keys, nothing secret.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from lazyfx_server.store.contract import (
    MissingStoreError,
    RemoteStore,
    StoreError,
    UnreachableError,
)

_PLACE: Final = f"identity/{hashlib.sha256(b'servers that share this store').hexdigest()}"
_MAX_BYTES: Final = 1 << 16


class OtherIdentityError(StoreError):
    """A store belongs to servers with other secrets."""


@dataclass(frozen=True)
class SharedIdentity:
    """What servers that share a store have in common.

    Attributes:
        tenant_secret: The secret of all tenants' keys.
        signing_keys: Tells the public keys that this server signs with or trusts.
        secret_remedy: What an operator has to do about another tenant secret.
        signing_remedy: What an operator has to do about other signing keys.
    """

    tenant_secret: bytes
    signing_keys: Callable[[], Sequence[bytes]]
    secret_remedy: str
    signing_remedy: str

    @property
    def entry_secret(self) -> bytes:
        """What the entries of a shared store are authenticated with."""
        return hmac.digest(self.tenant_secret, b"lazyfx: entries of a shared store", "sha256")

    async def check(self, store: RemoteStore) -> None:
        """Compares with the mark in a store, and leaves one where there is none.

        Signing keys may be replaced one at a time: one of them must be known to both.

        Raises:
            OtherIdentityError: The store belongs to servers with other secrets.
            MissingStoreError: There is no such store.
            UnreachableError: It does not answer.
        """
        own = {
            "tenant_secret": hmac.digest(
                self.tenant_secret, b"lazyfx: fingerprint", "sha256"
            ).hex(),
            "signing_keys": sorted(key.hex() for key in self.signing_keys()),
        }
        mark = json.dumps({**own, "sum": _sum(own)}).encode()
        found = await store.begin_get(_PLACE)
        if found is None:
            try:
                await store.put_if_absent(_PLACE, mark)
            except (UnreachableError, MissingStoreError):
                raise
            except StoreError:
                pass  # it cannot be written to, perhaps read
            found = await store.begin_get(_PLACE)  # another server may have been first
        if found is None:
            return
        stored = _parsed(await found.rest()) if found.size <= _MAX_BYTES else None
        if stored is None:
            await _replace(store, mark)
            return
        secret, keys = stored
        if secret != own["tenant_secret"]:
            raise OtherIdentityError(
                f"{store.name}: servers with another tenant secret share this store. "
                f"{self.secret_remedy}"
            )
        if keys.isdisjoint(own["signing_keys"]):
            raise OtherIdentityError(
                f"{store.name}: servers with other signing keys share this store. "
                f"{self.signing_remedy}"
            )
        if keys != set(own["signing_keys"]):
            await _replace(store, mark)


async def _replace(store: RemoteStore, mark: bytes) -> None:
    try:
        await store.put(_PLACE, mark)
    except UnreachableError:
        raise
    except StoreError:
        pass  # it cannot be written to


def _sum(own: Mapping[str, object]) -> str:
    """Shows that a mark is not damaged: else one wrong digit would look like another secret."""
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def _parsed(mark: bytes) -> tuple[str, set[str]] | None:
    try:
        read = json.loads(mark)
        found = {name: read[name] for name in ("tenant_secret", "signing_keys")}
        # Servers of earlier releases leave none.
        if read.get("sum") not in (None, _sum(found)):
            return None
        return str(found["tenant_secret"]), {str(key) for key in found["signing_keys"]}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None  # damaged: it is made again
