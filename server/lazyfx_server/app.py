"""The composition root: the parts of the server, and the order in which it starts and drains."""

from __future__ import annotations

import asyncio
import logging
import platform
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from importlib.metadata import version

import torch

from lazyfx.shared.signing_keys import fingerprint
from lazyfx_server.assembling import (
    artifact_signer,
    authenticator,
    fleet_flights,
    kernel_flights,
    ledger_file,
    memory_guard,
    native_compiles,
    pass_processes,
    shared_store,
    store_of,
    tls_files,
    upstream,
)
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.catalog import Catalog
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import PASS_POOL, Admission
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.memory_guard import CHECK_SECONDS
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.limits.request_checks import described
from lazyfx_server.compiling.miss_reasons import Explainer
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.server_ledger import ServerLedger
from lazyfx_server.execution import RestartReason
from lazyfx_server.jobs.artifact_kinds import ARTIFACT_KINDS, kind_name
from lazyfx_server.lifecycle import finishes_before, repeating
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import load_plugins, registry_with
from lazyfx_server.rpc.grpc_server import GrpcServer
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.request_decoding import Decoder
from lazyfx_server.rpc.service import GraphCompilerService, ServerFacts
from lazyfx_server.settings.model import Settings
from lazyfx_server.store_events import store_hooks
from lazyfx_server.telemetry import (
    DeferredObserver,
    Gauges,
    Observers,
    WorkerRestarted,
)
from lazyfx_server.telemetry.http import TelemetryServer
from lazyfx_server.telemetry.prometheus import PrometheusObserver, exposition, new_registry
from lazyfx_server.workers.devices import Devices
from lazyfx_server.workers.pools import Sources, device_worker
from lazyfx_server.workers.ray_pools import ray_engine

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
        plugins = load_plugins(settings.passes.pass_plugins)
        registry = registry_with(plugins)
        try:
            named = NamedPipelines(registry, settings.passes.named_pipelines)
        except ValueError as error:
            raise ValueError(f"--pipelines: {error}") from error
        ledger = self._ledger = ServerLedger(ledger_file(settings))
        costs = CodegenCosts()
        metrics = new_registry()
        signer = self._signer = artifact_signer(settings)
        hooks = store_hooks(
            lambda event: self._observers.observe(event),
            lambda key: self._catalog.record_damage(key),
        )
        self._shared_store = shared_store(settings, signer, hooks)
        self._store = store_of(settings.store, self._shared_store, hooks)
        quotas = Quotas(settings.quotas)
        callers = authenticator(settings)
        engine = self._engine = ray_engine(settings, added_targets)

        def restarted(reason: RestartReason) -> None:
            observers.observe(WorkerRestarted(reason))

        passes = pass_processes(settings, sources, engine, restarted)
        devices = None if engine is not None else device_worker(sources, restarted)
        self._executors = [passes.executor, *([devices] if devices else ())]
        job_timeout = settings.jobs.job_timeout
        self._devices = Devices(Jobs(devices or passes.executor, job_timeout))
        gauges = Gauges(
            store=self._store.tiers,
            stores_in_use=self._stores_in_use,
            in_flight=self._in_flight,
            backlog=lambda: {
                "pass": admission.backlog_seconds,
                "native": self._native.backlog_seconds,
            },
            memory_used=lambda: self._memory.used_part,
            refusing=lambda: self._memory.is_refusing,
            workers=passes.count,
            devices=self._devices.memory,
            sandbox=lambda: passes.sandbox().layers,
            engine=lambda: {} if engine is None else engine.status.levels(),
            native_sandbox=lambda: self._native.layers,
            upstream_in_use=self._upstream_in_use,
        )
        observers = Observers(
            ledger,
            PrometheusObserver(
                metrics,
                registry.names(),
                artifact_kinds=map(kind_name, ARTIFACT_KINDS),
                version=version("lazyfx"),
                torch_version=torch.__version__,
                python_version=platform.python_version(),
                gauges=gauges,
                restored=ledger.restored,
            ),
        )
        self._observers = observers
        deferred = self._deferred = DeferredObserver(observers)
        crashes = CrashTracker(settings.workers.crash_refusal_seconds)
        guard = self._memory = memory_guard(settings, self._store, passes.executor)
        fleet = self._fleet = fleet_flights(settings, self._shared_store, self._store, deferred)
        kernels = self._kernels = kernel_flights(settings, self._store, fleet, observers)
        self._native = native_compiles(
            settings, sources, engine, crashes, observers, restarted, guard.refusal, kernels
        )
        jobs = Jobs(passes.executor, job_timeout, crashes, observer=observers)
        catalog = self._catalog = Catalog(self._store)
        admission = Admission(
            settings.workers.workers, settings.calls, PASS_POOL, observers, guard.refusal
        )
        if engine is not None:
            engine.listen(lambda: admission.resize(max(1, passes.count())))
        routes, self._forwarding = upstream(settings, jobs, admission, observers)
        self._compiler = Compiler(
            catalog=catalog,
            store=self._store,
            jobs=jobs,
            admission=admission,
            pipelines=Pipelines(registry, named),
            explainer=Explainer(self._store),
            observer=deferred,
            limits=settings.requests,
            quotas=quotas,
            costs=costs,
            fleet=fleet,
            plugins=tuple(plugin.target for plugin in plugins),
            forwarding=self._forwarding,
        )
        self._artifacts = Artifacts(
            catalog=catalog,
            store=self._store,
            jobs=jobs,
            admission=admission,
            observer=observers,
            signer=signer,
            native=self._native,
            quotas=quotas,
            costs=costs,
            fleet=fleet,
            max_source_bytes=settings.requests.max_source_bytes,
            forwarding=self._forwarding,
        )
        pacing = RefusalPacing(settings.calls.max_refused_rate)
        blobs = Blobs(self._store, settings.uploads, fleet)
        service = GraphCompilerService(
            compiler=self._compiler,
            artifacts=self._artifacts,
            blobs=blobs,
            ledger=ledger,
            settle=deferred.settle,
            registry=registry,
            named=named,
            limits=settings.calls,
            decoder=Decoder(
                request_bounds(settings.requests, settings.calls, settings.uploads),
                RequestMemory(settings.calls),
            ),
            facts=ServerFacts(
                passes.count if engine is not None else lambda: settings.workers.workers,
                tuple(described(settings.limits)),
                lambda: self._devices.infos,
                signer,
                lambda: self._native.targets,
                callers.identification,
                passes.sandbox,
                lambda: self._native.status,
                self._forwarding,
            ),
            store_stats=self._store.stats,
            pacing=pacing,
        )
        self._interceptor = CallInterceptor(
            callers,
            quotas,
            deferred,
            settings.calls.max_call_seconds,
            pacing,
            routes,
        )
        self._server = GrpcServer(
            service,
            self._interceptor,
            max_message_bytes=int(settings.calls.max_message_bytes),
            max_streams=settings.calls.max_streams,
            max_metadata_bytes=int(settings.calls.max_metadata_bytes),
            with_reflection=settings.addresses.reflection,
        )
        self._telemetry = TelemetryServer(
            exposition(metrics),
            healthy=lambda: True,
            ready=lambda: self._serving,
            notes=self._notes,
            settle=deferred.settle,
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
        parts.push_async_callback(self._server.stop)
        parts.callback(self._ledger.close)
        parts.callback(self._deferred.settle)
        await parts.enter_async_context(
            repeating(_LEDGER_SECONDS, partial(asyncio.to_thread, self._ledger.save))
        )
        parts.push_async_callback(self._store.close)
        if self._shared_store is not None:
            await self._shared_store.connect()
        self._server.bind(self._settings.addresses.listen, tls_files(self._settings.callers))
        await self._start_telemetry()
        parts.push_async_callback(self._telemetry.stop)
        # Calls use workers, so workers stop after the last call. They take seconds to start.
        parts.push_async_callback(self._native.close)
        if self._engine is not None:
            parts.push_async_callback(self._engine.close)
        for executor in self._executors:
            parts.push_async_callback(executor.close)
        await self._server.start()
        _log.info(
            "listening on %s, metrics on %s; not serving yet: starting workers",
            self._address,
            self._metrics_url,
        )
        if self._engine is not None:
            if not await self._engine.start(self._settings.workers.executor_start_seconds):
                _log.warning("serving only what is stored: %s", self._engine.status.problem)
        else:
            for executor in self._executors:
                await executor.start()
        await self._devices.refresh()
        await self._native.start()
        if self._forwarding is not None:
            parts.push_async_callback(self._forwarding.close)
            await self._forwarding.start()
        parts.push_async_callback(self._drain)
        await self._server.open()
        self._serving = True
        await parts.enter_async_context(repeating(_DEVICE_SECONDS, self._devices.refresh))
        await parts.enter_async_context(repeating(CHECK_SECONDS, self._memory.check))

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
        await self._server.refuse_calls()
        try:
            await asyncio.wait_for(self._finish(), seconds)
        except asyncio.TimeoutError:
            _log.warning("requests were still in flight after the grace period; cancelling them")

    async def _finish(self) -> None:
        await self._interceptor.wait_until_idle()
        await self._compiler.drain()
        await self._artifacts.drain()
        await self._fleet.drain()

    def _log_key(self, address: str) -> None:
        in_use = self._signer.verify_keys[0].public_key
        _log.info(
            "artifacts are signed with key %s; a client on another machine trusts it with "
            "`lazyfx trust HOST:%s`, or with LAZYFX_VERIFY_KEYS=%s",
            fingerprint(in_use),
            address.rpartition(":")[2],
            in_use.hex(),
        )

    @property
    def _address(self) -> str:
        return f"{self._settings.addresses.listen.rpartition(':')[0]}:{self._server.port}"

    @property
    def _metrics_url(self) -> str:
        return f"http://{self._settings.addresses.metrics_host}:{self._telemetry.port}/metrics"

    def _notes(self) -> str:
        """What /readyz says of a server that is ready, but cannot do everything."""
        problem = "" if self._engine is None else self._engine.status.problem
        return "\n".join(
            filter(None, (self._native.problem, problem and f"no jobs run: {problem}"))
        )

    def _upstream_in_use(self) -> bool | None:
        return None if self._forwarding is None else self._forwarding.in_use

    def _stores_in_use(self) -> Mapping[str, bool]:
        return {} if self._shared_store is None else self._shared_store.available()

    def _in_flight(self) -> dict[str, int]:
        return {
            "compile": self._compiler.in_flight,
            "render": self._artifacts.in_flight,
            "kernel": self._kernels.in_flight,
        }
