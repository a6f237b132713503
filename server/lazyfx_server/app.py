"""One server: the order in which its parts start, drain and stop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from functools import partial

from lazyfx.shared.signing_keys import fingerprint
from lazyfx_server.assembling import (
    Compiling,
    Counts,
    PassTables,
    Rpc,
    Storage,
    Workers,
    export_state,
    tls_files,
)
from lazyfx_server.compiling.limits.memory_guard import CHECK_SECONDS
from lazyfx_server.lifecycle import finishes_before, repeating
from lazyfx_server.settings.model import Settings
from lazyfx_server.telemetry.http import TelemetryServer
from lazyfx_server.telemetry.prometheus import exposition
from lazyfx_server.workers.pools import Sources

_log = logging.getLogger("lazyfx_server")

# How often workers are queried for devices; free device memory changes constantly.
_DEVICE_SECONDS = 15.0
# How often the ledger is written; a killed server loses at most this much.
_LEDGER_SECONDS = 2.0


class App:
    """One server.

    Args:
        settings: All settings; each package gets its part here.
        sources: Start worker processes; the fork server was started before gRPC was used.
        added_targets: The file of added targets; empty without one.

    Raises:
        PluginError: An enabled plugin cannot be used.
        ValueError: A pipeline in the settings is invalid.
    """

    def __init__(self, settings: Settings, sources: Sources, added_targets: str = "") -> None:
        self._settings = settings
        self._serving = False
        tables = PassTables.of(settings)
        counts = self._counts = Counts.of(settings, tables)
        storage = self._storage = Storage.of(settings, counts)
        workers = self._workers = Workers.of(settings, sources, added_targets, counts, storage)
        compiling = self._compiling = Compiling.of(settings, tables, counts, storage, workers)
        self._rpc = Rpc.of(settings, tables, counts, storage, workers, compiling)
        export_state(counts, storage, workers, compiling)
        self._telemetry = TelemetryServer(
            exposition(counts.metrics),
            healthy=lambda: True,
            ready=lambda: self._serving,
            notes=self._notes,
            settle=counts.deferred.settle,
            host=settings.addresses.metrics_host,
            port=settings.addresses.metrics_port,
        )

    async def run(self, stop: asyncio.Event, on_ready: Callable[[str, str], None]) -> None:
        """Serve until `stop` is set, then drain.

        Args:
            stop: Also interrupts startup.
            on_ready: Called once with the gRPC address and the metrics URL.

        Raises:
            OSError: An address cannot be bound.
        """
        async with AsyncExitStack() as parts:
            if await finishes_before(stop, self._start(parts)):
                on_ready(self._address, self._metrics_url)
                self._log_key(self._address)
                await stop.wait()

    async def _start(self, parts: AsyncExitStack) -> None:
        """Start the parts, each after those that it uses. They stop in reverse order.

        The port is bound at once; calls are admitted when everything that they need is ready.
        """
        parts.callback(_log.info, "stopped")
        # Last, so that callers are told when to retry until a successor can have everything else.
        parts.push_async_callback(self._rpc.server.stop)
        parts.callback(self._counts.ledger.close)
        parts.callback(self._counts.deferred.settle)
        await parts.enter_async_context(
            repeating(_LEDGER_SECONDS, partial(asyncio.to_thread, self._counts.ledger.save))
        )
        parts.push_async_callback(self._storage.store.close)
        parts.push_async_callback(self._compiling.blobs.close)
        if self._storage.shared is not None:
            await self._storage.shared.connect()
        self._rpc.server.bind(self._settings.addresses.listen, tls_files(self._settings.callers))
        await self._start_telemetry()
        parts.push_async_callback(self._telemetry.stop)
        # Calls use workers, so workers stop after the last call. They take seconds to start.
        parts.push_async_callback(self._workers.native.close)
        if self._workers.engine is not None:
            parts.push_async_callback(self._workers.engine.close)
        for executor in self._workers.executors:
            parts.push_async_callback(executor.close)
        await self._rpc.server.start()
        _log.info(
            "listening on %s, metrics on %s; not serving yet: starting workers",
            self._address,
            self._metrics_url,
        )
        engine = self._workers.engine
        if engine is not None:
            if not await engine.start(self._settings.workers.executor_start_seconds):
                _log.warning("serving only what is stored: %s", engine.cluster.status.problem)
        else:
            for executor in self._workers.executors:
                await executor.start()
        await self._workers.devices.refresh()
        await self._workers.native.start()
        if self._compiling.forwarding is not None:
            parts.push_async_callback(self._compiling.forwarding.close)
            await self._compiling.forwarding.start()
        parts.push_async_callback(self._drain)
        await self._rpc.server.open()
        self._serving = True
        await parts.enter_async_context(repeating(_DEVICE_SECONDS, self._workers.devices.refresh))
        await parts.enter_async_context(repeating(CHECK_SECONDS, self._workers.memory.check))

    async def _start_telemetry(self) -> None:
        try:
            await self._telemetry.start()
        except OSError as error:
            settings = self._settings.addresses
            raise OSError(
                f"--metrics-host {settings.metrics_host} --metrics-port {settings.metrics_port}: "
                f"cannot listen there: {error.strerror or error}"
            ) from error

    async def _drain(self) -> None:
        """Stop serving: report it first, then let running calls finish."""
        seconds = self._settings.stopping.drain_seconds
        _log.info("draining: no new requests; %g s for requests in flight", seconds)
        self._serving = False
        await self._rpc.server.refuse_calls()
        try:
            await asyncio.wait_for(self._finish(), seconds)
        except asyncio.TimeoutError:
            _log.warning("requests were still in flight after the grace period; cancelling them")

    async def _finish(self) -> None:
        await self._rpc.calls.wait_until_idle()
        await self._compiling.compiler.drain()
        await self._compiling.artifacts.drain()
        await self._storage.fleet.drain()

    def _log_key(self, address: str) -> None:
        in_use = self._storage.signer.verify_keys[0].public_key
        _log.info(
            "artifacts are signed with key %s; a client on another machine trusts it with "
            "`lazyfx trust HOST:%s`, or with LAZYFX_VERIFY_KEYS=%s",
            fingerprint(in_use),
            address.rpartition(":")[2],
            in_use.hex(),
        )

    @property
    def _address(self) -> str:
        return f"{self._settings.addresses.listen.rpartition(':')[0]}:{self._rpc.server.port}"

    @property
    def _metrics_url(self) -> str:
        return f"http://{self._settings.addresses.metrics_host}:{self._telemetry.port}/metrics"

    def _notes(self) -> str:
        """What /readyz says of a server that is ready, but cannot do everything."""
        engine = self._workers.engine
        problem = "" if engine is None else engine.cluster.status.problem
        return "\n".join(
            filter(None, (self._workers.native.problem, problem and f"no jobs run: {problem}"))
        )
