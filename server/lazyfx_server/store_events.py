"""What happens in the store, as events and lines of the log."""

from __future__ import annotations

import logging
from collections.abc import Callable

from lazyfx_server.store import Operation, SkippedError, StoreError, StoreHooks
from lazyfx_server.telemetry import EntryCorrupt, StoreFailed, StoreSkipped
from lazyfx_server.telemetry.events import Event
from lazyfx_server.telemetry.outages import Outages

_log = logging.getLogger("lazyfx_server")


def store_hooks(observe: Callable[[Event], None], on_damage: Callable[[str], None]) -> StoreHooks:
    """What a server's store calls.

    Args:
        observe: Takes the events.
        on_damage: Called with the key of each corrupt entry.
    """
    outages = Outages()

    def failed(tier: str, operation: Operation, _key: str, error: Exception) -> None:
        if isinstance(error, SkippedError):
            observe(StoreSkipped(tier, operation))
            return
        outages.failed(f"store: {operation} of {tier}", error)
        observe(StoreFailed(tier, operation))

    def corrupt(tier: str, key: str) -> None:
        _log.warning("store: quarantined a corrupt entry in %s: %s", tier, key)
        on_damage(key)
        observe(EntryCorrupt(tier))

    return StoreHooks(
        on_error=failed,
        on_recovered=lambda tier, operation: outages.recovered(f"store: {operation} of {tier}"),
        on_corrupt=corrupt,
        on_change=_log_change,
    )


def _log_change(tier: str, problem: StoreError | None) -> None:
    if problem is None:
        _log.info("store: %s is used from now on", tier)
    else:
        _log.warning("store: %s is not used for now: %s", tier, problem)
