"""The composition root: the parts of the server, and the order in which it starts and drains."""

from __future__ import annotations

import asyncio
import logging
import platform
import signal
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version

import grpc.aio
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from lazyfx.shared.signing_keys import fingerprint
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1.compiler_pb2_grpc import add_GraphCompilerServicer_to_server
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.catalog import Catalog
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.miss_reasons import Explainer
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.server_ledger import ServerLedger
from lazyfx_server.errors import RequestError
from lazyfx_server.execution import OnRestart, RestartReason
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import load_plugins, registry_with
from lazyfx_server.room_settings import (
    artifact_signer,
    authenticator,
    ledger_file,
    native_compiles,
    quota_limits,
    request_limits,
)
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.request_decoding import Decoder
from lazyfx_server.rpc.service import GraphCompilerService, ServerFacts
from lazyfx_server.rpc.tcp_connections import drop_connections, refuse_connections
from lazyfx_server.rpc.tls import TlsFiles, server_credentials
from lazyfx_server.settings.loading import Settings
from lazyfx_server.store import Store, open_store
from lazyfx_server.telemetry import (
    DeferredObserver,
    DeviceMemory,
    EntryCorrupt,
    Gauges,
    Observers,
    StoreFailed,
    WorkerRestarted,
)
from lazyfx_server.telemetry.http import TelemetryServer
from lazyfx_server.telemetry.outages import Outages
from lazyfx_server.telemetry.prometheus import PrometheusObserver, exposition, new_registry
from lazyfx_server.workers.pools import (
    NativePools,
    NativeUnavailable,
    Sources,
    device_worker,
    native_pools,
    pass_workers,
    protection,
)

_log = logging.getLogger("lazyfx_server")

SERVICE_NAME = "lazyfx.v1.GraphCompiler"
# How often workers are queried for devices; free device memory changes constantly.
_DEVICE_SECONDS = 15.0
# How often the ledger is written; a killed server loses at most this much.
_LEDGER_SECONDS = 2.0
# Between the last answer, which may still be in flight, and closing the connections.
_FLUSH_SECONDS = 0.2
# How long handlers may take to notice that their connections have ended.
_STOP_SECONDS = 1.0
# Answers are the server's own: what clients take is less.
_MAX_SENT_BYTES = 64 * 2**20
_KEEPALIVE: Sequence[tuple[str, int]] = (
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
    # Two servers on one port would each answer half of the calls from caches of their own.
    ("grpc.so_reuseport", 0),
)


@dataclass
class _Devices:
    """The latest device report of the workers."""

    infos: Sequence[pb.DeviceInfo] = field(default_factory=tuple)

    def memory(self) -> Iterable[DeviceMemory]:
        return [
            DeviceMemory(info.device, info.memory_total_bytes, info.memory_free_bytes)
            for info in self.infos
        ]


class App:
    """One server.

    Args:
        settings: All settings; each room gets its part here.
        sources: Where workers come from; the fork server is started, before gRPC was used.

    Raises:
        PluginError: A plugin that is enabled cannot be used.
        ValueError: A pipeline of the settings names no passes.
    """

    def __init__(self, settings: Settings, sources: Sources) -> None:
        self._settings = settings
        self._limits = request_limits(settings)
        self._devices = _Devices()
        self._serving = False
        self._outages = Outages()
        self._port = 0
        plugins = load_plugins(settings.pass_plugins)
        registry = registry_with(plugins)
        try:
            named = NamedPipelines(registry, settings.named_pipelines)
        except ValueError as error:
            raise ValueError(f"--pipelines: {error}") from error
        ledger = self._ledger = ServerLedger(ledger_file(settings))
        costs = CodegenCosts()
        metrics = new_registry()
        self._store = self._open_store(settings)
        signer = self._signer = artifact_signer(settings)
        quotas = Quotas(quota_limits(settings))
        callers = authenticator(settings)
        confined = protection(settings)

        def restarted(reason: RestartReason) -> None:
            observers.observe(WorkerRestarted(reason))

        self._executor = pass_workers(settings, sources, confined.layers, restarted)
        self._device_executor = device_worker(sources, restarted)
        gauges = Gauges(
            store=self._store.tiers,
            in_flight=self._in_flight,
            workers=lambda: len(self._executor.pids),
            devices=self._devices.memory,
            sandbox=lambda: confined.layers,
            native_sandbox=lambda: (
                self._native_pools.protection.layers if self._native_pools else ()
            ),
        )
        observers = Observers(
            ledger,
            PrometheusObserver(
                metrics,
                registry.names(),
                version=version("lazyfx"),
                torch_version=torch.__version__,
                python_version=platform.python_version(),
                gauges=gauges,
                restored=ledger.restored,
            ),
        )
        self._observers = observers
        deferred = DeferredObserver(observers)
        crashes = CrashTracker(settings.crash_refusal_seconds)
        self._native_pools, native_unavailable = self._pools_of_native(sources, restarted)
        self._native = native_compiles(settings, self._native_pools, crashes, observers)
        if native_unavailable:
            self._native.disable(native_unavailable)
        self._jobs = Jobs(self._executor, settings.job_timeout, crashes, observer=observers)
        self._device_jobs = Jobs(
            self._device_executor or self._executor, settings.job_timeout, crashes
        )
        catalog = self._catalog = Catalog(self._store)
        admission = Admission(settings.workers, settings.max_queue)
        self._compiler = Compiler(
            catalog=catalog,
            store=self._store,
            jobs=self._jobs,
            admission=admission,
            pipelines=Pipelines(registry, named),
            explainer=Explainer(self._store),
            observer=deferred,
            limits=self._limits,
            quotas=quotas,
            costs=costs,
            plugins=tuple(plugin.target for plugin in plugins),
        )
        self._artifacts = Artifacts(
            catalog=catalog,
            store=self._store,
            jobs=self._jobs,
            admission=admission,
            observer=observers,
            signer=signer,
            native=self._native,
            quotas=quotas,
            costs=costs,
            max_source_bytes=self._limits.graph.max_source_bytes,
        )
        blobs = Blobs(self._store, self._limits)
        service = GraphCompilerService(
            compiler=self._compiler,
            artifacts=self._artifacts,
            blobs=blobs,
            ledger=ledger,
            registry=registry,
            named=named,
            limits=self._limits,
            decoder=Decoder(
                self._limits,
                RequestMemory(self._limits.max_held_bytes, self._limits.max_held_bytes_per_tenant),
            ),
            facts=ServerFacts(
                settings.workers,
                lambda: self._devices.infos,
                signer,
                lambda: self._native.target,
                callers.identification,
                pb.SandboxStatus(layers=confined.layers, missing=confined.missing),
                self._native_status,
            ),
            store_stats=self._store.stats,
            quotas=quotas,
        )
        self._interceptor = CallInterceptor(
            callers,
            deferred,
            settings.max_call_seconds,
            RefusalPacing(settings.max_refused_rate),
        )
        self._health = HealthServicer()
        self._server = self._grpc_server(service)
        self._telemetry = TelemetryServer(
            exposition(metrics),
            healthy=lambda: True,
            ready=lambda: self._serving,
            notes=self._notes,
            host=settings.metrics_host,
            port=settings.metrics_port,
        )

    def _pools_of_native(
        self, sources: Sources, on_restart: OnRestart
    ) -> tuple[NativePools | None, str]:
        """What native compiles run in; None and why not where they are optional."""
        try:
            return native_pools(self._settings, sources, on_restart), ""
        except NativeUnavailable as error:
            if self._settings.native == "on":
                raise OSError(f"--native: {error}") from error
            return None, str(error)

    def _native_status(self) -> pb.NativeStatus:
        if self._native.target is None:
            return pb.NativeStatus(unavailable=self._native.unavailable_reason)
        assert self._native_pools is not None, "it has told where artifacts run"
        held = self._native_pools.protection
        return pb.NativeStatus(sandbox=pb.SandboxStatus(layers=held.layers, missing=held.missing))

    def _notes(self) -> str:
        """What a probe is told besides that the server is ready."""
        if self._settings.native == "off" or self._native.target is not None:
            return ""
        return self._native.unavailable_reason

    async def run(self, on_ready: Callable[[str, str], None]) -> None:
        """Serve until SIGTERM or SIGINT, then drain.

        Args:
            on_ready: Called once with the gRPC address and the metrics URL.

        Raises:
            OSError: An address cannot be listened on.
        """
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        try:
            if not await self._start_unless(stop):
                return
            watching = asyncio.gather(self._watch_devices(), self._save_ledger_periodically())
            on_ready(self._address, self._metrics_url)
            self._log_key(self._address)
            await stop.wait()
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
        finally:
            await self._drain()

    def _log_key(self, address: str) -> None:
        in_use = self._signer.verify_keys[0].public_key
        _log.info(
            "artifacts are signed with key %s; a client on another machine trusts it with "
            "`lazyfx trust HOST:%s`, or with LAZYFX_VERIFY_KEYS=%s",
            fingerprint(in_use),
            address.rpartition(":")[2],
            in_use.hex(),
        )

    async def _start_unless(self, stop: asyncio.Event) -> bool:
        """Start, and tell whether that was done before the server was told to stop."""
        starting = asyncio.ensure_future(self._start())
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if not starting.done():
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
            return False
        await starting
        return True

    async def _start(self) -> None:
        """Listen at once, and let calls in when all that they need is there."""
        try:
            self._port = self._bind(self._settings)
        except RuntimeError as error:
            raise OSError(
                f"--listen {self._settings.listen}: cannot listen there; is another server "
                f"running? ({error})"
            ) from error
        try:
            await self._telemetry.start()
        except OSError as error:
            settings = self._settings
            raise OSError(
                f"--metrics-host {settings.metrics_host} --metrics-port {settings.metrics_port}: "
                f"cannot listen there: {error.strerror or error}"
            ) from error
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        await self._server.start()
        _log.info(
            "listening on %s, metrics on %s; not serving yet: starting workers",
            self._address,
            self._metrics_url,
        )
        await self._executor.start()
        if self._device_executor is not None:
            await self._device_executor.start()
        await self._refresh_devices()
        if self._native_pools is not None:
            await self._native_pools.start()
            await self._native.start()
        self._interceptor.open()
        for name in ("", SERVICE_NAME):
            await self._health.set(name, health_pb2.HealthCheckResponse.SERVING)
        self._serving = True

    @property
    def _address(self) -> str:
        return f"{self._settings.listen.rpartition(':')[0]}:{self._port}"

    @property
    def _metrics_url(self) -> str:
        return f"http://{self._settings.metrics_host}:{self._telemetry.port}/metrics"

    def _bind(self, settings: Settings) -> int:
        if settings.server_certificate is None or settings.server_key is None:
            return self._server.add_insecure_port(settings.listen)
        files = TlsFiles(settings.server_certificate, settings.server_key, settings.client_ca)
        return self._server.add_secure_port(settings.listen, server_credentials(files))

    async def _drain(self) -> None:
        """Stop serving: say so first, let calls under way finish, then end what they used."""
        if self._serving:
            _log.info(
                "draining: no new requests; %g s for requests in flight",
                self._settings.drain_seconds,
            )
        self._serving = False
        await self._health.enter_graceful_shutdown()
        self._interceptor.close()
        try:
            await asyncio.wait_for(self._finish(), self._settings.drain_seconds)
        except asyncio.TimeoutError:
            _log.warning("requests were still in flight after the grace period; cancelling them")
        if self._port:
            refuse_connections(self._port)
            await asyncio.sleep(_FLUSH_SECONDS)
            drop_connections(self._port)
        await self._server.stop(_STOP_SECONDS)
        await self._executor.close()
        if self._device_executor is not None:
            await self._device_executor.close()
        if self._native_pools is not None:
            await self._native_pools.close()
        self._native.close()
        await self._store.close()
        self._ledger.close()
        await self._telemetry.stop()
        _log.info("stopped")

    async def _finish(self) -> None:
        await self._interceptor.wait_until_idle()
        await self._compiler.drain()
        await self._artifacts.drain()

    def _grpc_server(self, service: GraphCompilerService) -> grpc.aio.Server:
        settings = self._settings
        server = grpc.aio.server(
            interceptors=[self._interceptor],
            options=[
                *_KEEPALIVE,
                ("grpc.max_receive_message_length", int(settings.max_message_bytes)),
                ("grpc.max_send_message_length", _MAX_SENT_BYTES),
                ("grpc.max_concurrent_streams", settings.max_streams),
                ("grpc.max_metadata_size", int(settings.max_metadata_bytes)),
                ("grpc.absolute_max_metadata_size", int(settings.max_metadata_bytes)),
            ],
        )
        add_GraphCompilerServicer_to_server(service, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        if settings.reflection:
            names = (SERVICE_NAME, health_pb2.DESCRIPTOR.services_by_name["Health"].full_name)
            reflection.enable_server_reflection((*names, reflection.SERVICE_NAME), server)
        return server

    def _open_store(self, settings: Settings) -> Store:
        return open_store(
            settings.store_path,
            memory_bytes=settings.store_memory_bytes,
            disk_bytes=settings.store_disk_bytes,
            on_error=lambda tier, operation, _key, error: self._store_failed(
                tier, operation, error
            ),
            on_recovered=lambda tier, operation: self._outages.recovered(
                f"store: {operation} of {tier}"
            ),
            on_corrupt=self._entry_corrupt,
        )

    def _store_failed(self, tier: str, operation: str, error: Exception) -> None:
        self._outages.failed(f"store: {operation} of {tier}", error)
        self._observers.observe(StoreFailed(tier, operation))

    def _entry_corrupt(self, tier: str, key: str) -> None:
        _log.warning("store: quarantined a damaged entry in %s: %s", tier, key)
        self._catalog.record_damage(key)
        self._observers.observe(EntryCorrupt(tier))

    def _in_flight(self) -> dict[str, int]:
        return {"compile": self._compiler.in_flight, "render": self._artifacts.in_flight}

    async def _save_ledger_periodically(self) -> None:
        while True:
            await asyncio.sleep(_LEDGER_SECONDS)
            await asyncio.to_thread(self._ledger.save)

    async def _watch_devices(self) -> None:
        while True:
            await asyncio.sleep(_DEVICE_SECONDS)
            await self._refresh_devices()

    async def _refresh_devices(self) -> None:
        try:
            self._devices.infos = tuple((await self._device_jobs.describe()).devices)
        except RequestError as error:
            _log.warning("cannot query the devices of the workers: %s", error)
