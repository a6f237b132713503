"""An event loop in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Answer = TypeVar("Answer")


class Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="lazyfx-client", daemon=True
        )
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Answer], seconds: float | None = None) -> Answer:
        """Run a coroutine in the loop and wait for it.

        Raises:
            concurrent.futures.TimeoutError: It did not end in that many seconds.
        """
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(seconds)
        except BaseException:  # also Ctrl-C while waiting: the call must not run on behind
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(5.0)
            if not self._thread.is_alive():  # a loop that runs on cannot be closed
                self._loop.close()
