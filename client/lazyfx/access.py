"""How a client reaches a server: what it shows of itself, and whom it believes."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Access:
    """What goes with every call of a client; made by `access`.

    Attributes:
        verify_keys: Public keys in hex that artifacts must be signed with; None pins none.
    """

    verify_keys: tuple[str, ...] | None = None

    def believes(self, address: str) -> bool:
        """Whether what comes over this connection can only come from the server meant."""
        return is_loopback(address)


def access(*, verify_keys: Sequence[str] | str | None = None) -> Access:
    """Read what was given, and from the environment what was not.

    Args:
        verify_keys: Public keys in hex, or several joined by commas; else LAZYFX_VERIFY_KEYS.
    """
    keys = verify_keys if verify_keys is not None else os.environ.get("LAZYFX_VERIFY_KEYS") or None
    if isinstance(keys, str):
        keys = [key for key in keys.replace(",", " ").split() if key]
    return Access(verify_keys=None if keys is None else tuple(keys))


def is_loopback(address: str) -> bool:
    """Whether an address, "host:port", is on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
