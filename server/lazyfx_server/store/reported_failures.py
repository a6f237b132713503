"""Whatever a store does, it is only a miss: failures are reported and go no further."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TypeVar

from lazyfx_server.store.contract import OnError, OnRecovered, Operation, Store

T = TypeVar("T")


class ReportedFailures:
    """Runs operations of stores and reports how they ended.

    Args:
        on_error: Told of each operation that failed.
        on_recovered: Told of each success of an operation that has failed at some time before.
    """

    def __init__(self, on_error: OnError | None, on_recovered: OnRecovered | None) -> None:
        self._on_error = on_error
        self._on_recovered = on_recovered
        self._failed: set[tuple[str, Operation]] = set()

    async def result(
        self, store: Store, operation: Operation, key: str, work: Awaitable[T]
    ) -> T | None:
        """What the operation returns, or None if it failed."""
        try:
            result = await work
        except Exception as error:  # noqa: BLE001 - what can be computed again fails no request
            self.report(store, operation, key, error)
            return None
        if (
            self._failed
            and self._on_recovered is not None
            and (store.name, operation) in self._failed
        ):
            self._on_recovered(store.name, operation)
        return result

    def report(self, store: Store, operation: Operation, key: str, error: Exception) -> None:
        """Reports an operation that has failed."""
        self._failed.add((store.name, operation))
        if self._on_error is not None:
            self._on_error(store.name, operation, key, error)
