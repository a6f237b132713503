"""The parts of a server and how they are connected: each group is made from those before it."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version

import torch

from lazyfx_server.assembling import (
    PassWorkers,
    artifact_signer,
    authenticator,
    fleet_flights,
    ledger_file,
    memory_guard,
    native_compiles,
    pass_processes,
    shared_store,
    store_of,
    upstream,
)
from lazyfx_server.compiling.artifact_making import ArtifactMaker
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.catalog import Catalog
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights
from lazyfx_server.compiling.forwarding.forwarded_artifacts import ForwardedArtifacts
from lazyfx_server.compiling.forwarding.forwarded_modules import ForwardedModules
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import PASS_POOL, Admission
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.memory_guard import MemoryGuard
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.limits.request_checks import described
from lazyfx_server.compiling.miss_reasons import Explainer
from lazyfx_server.compiling.module_making import ModuleMaker
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.request import RequestReader
from lazyfx_server.compiling.server_ledger import ServerLedger
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts
from lazyfx_server.execution import Executor, ProcessExecutor, RestartReason
from lazyfx_server.execution.ray_engine import RayEngine
from lazyfx_server.metric_labels import label_values
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import load_plugins, registry_with
from lazyfx_server.passes.registry import Registry
from lazyfx_server.rpc.grpc_server import GrpcServer
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.request_decoding import Decoder
from lazyfx_server.rpc.service import GraphCompilerService, ServerFacts
from lazyfx_server.security.signing import Signer
from lazyfx_server.settings.model import Settings
from lazyfx_server.store import MemoryStore, SharedStore, TieredStore
from lazyfx_server.store_events import store_hooks
from lazyfx_server.telemetry import DeferredObserver, Gauges, Observers, WorkerRestarted
from lazyfx_server.telemetry.labels import DefinedElsewhere
from lazyfx_server.telemetry.prometheus import CollectorRegistry, PrometheusObserver, export_levels
from lazyfx_server.upstream.route import Routes
from lazyfx_server.workers.devices import Devices
from lazyfx_server.workers.pools import Sources, device_worker
from lazyfx_server.workers.ray_pools import ray_engine


@dataclass(frozen=True)
class PassTables:
    """The passes and pipelines of a server.

    Attributes:
        registry: The passes.
        named: The pipelines of the settings.
        plugins: Object references by which workers find plugins.
    """

    registry: Registry
    named: NamedPipelines
    plugins: Sequence[str]

    @classmethod
    def of(cls, settings: Settings) -> PassTables:
        """Load plugins and check pipelines.

        Raises:
            PluginError: An enabled plugin cannot be used.
            ValueError: A pipeline in the settings is invalid.
        """
        plugins = load_plugins(settings.passes.pass_plugins)
        registry = registry_with(plugins)
        try:
            named = NamedPipelines(registry, settings.passes.named_pipelines)
        except ValueError as error:
            raise ValueError(f"--pipelines: {error}") from error
        return cls(registry, named, tuple(plugin.target for plugin in plugins))


@dataclass(frozen=True)
class Counts:
    """What counts events.

    Attributes:
        ledger: The counts that GetStats returns.
        metrics: The metrics of Prometheus.
        labels: Values of their labels.
        observer: Adds events to both.
        deferred: The same a moment later, for events of requests.
    """

    ledger: ServerLedger
    metrics: CollectorRegistry
    labels: DefinedElsewhere
    observer: Observers
    deferred: DeferredObserver

    @classmethod
    def of(cls, settings: Settings, tables: PassTables) -> Counts:
        """Begin with the counts of earlier runs."""
        ledger = ServerLedger(ledger_file(settings))
        metrics = CollectorRegistry()
        versions = {
            "version": version("lazyfx"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        }
        labels = label_values(tables.registry.names())
        exported = PrometheusObserver(metrics, labels, versions, ledger.restored)
        observer = Observers(ledger, exported)
        return cls(ledger, metrics, labels, observer, DeferredObserver(observer))

    def count_restart(self, reason: RestartReason) -> None:
        """Count a worker that was replaced."""
        self.observer.observe(WorkerRestarted(reason))


@dataclass(frozen=True)
class Storage:
    """What a server keeps.

    Attributes:
        shared: What it shares with other servers; None without that.
        store: Its store, over that.
        catalog: The compiled modules in it.
        signer: Signs artifacts.
    """

    shared: SharedStore | None
    store: MemoryStore | TieredStore
    catalog: Catalog
    signer: Signer

    @classmethod
    def of(cls, settings: Settings, counts: Counts) -> Storage:
        """Open the store.

        Raises:
            OSError: A key or secret cannot be used.
            SharedStoreError, StoreError: The store cannot be used.
        """
        signer = artifact_signer(settings)
        # The store reports damage to the catalog, which is made from it.
        hooks = store_hooks(counts.observer.observe, lambda key: catalog.record_damage(key))
        shared = shared_store(settings, signer, hooks)
        store = store_of(settings.store, shared, hooks)
        catalog = Catalog(store)
        return cls(shared, store, catalog, signer)


@dataclass(frozen=True)
class Workers:
    """What runs jobs.

    Attributes:
        engine: Runs them on other machines; None if processes of this one do.
        passes: The workers that run passes.
        devices: What devices the workers see.
        device_worker: The worker of this machine that lists them; None with an engine.
        memory: Refuses work while the memory is nearly used up.
        jobs: Sends jobs to the workers that run passes.
        admission: The queue in front of these.
        native: Compiles native artifacts.
    """

    engine: RayEngine | None
    passes: PassWorkers
    devices: Devices
    device_worker: ProcessExecutor | None
    memory: MemoryGuard
    jobs: Jobs
    admission: Admission
    native: NativeCompiles

    @property
    def executors(self) -> list[Executor]:
        """What has to be started and closed, in this order."""
        lister = self.device_worker
        return [self.passes.executor, *([] if lister is None else [lister])]

    @classmethod
    def of(
        cls,
        settings: Settings,
        sources: Sources,
        added_targets: str,
        counts: Counts,
        storage: Storage,
    ) -> Workers:
        """Prepare the workers; none is started yet.

        Raises:
            OSError: The settings require what this machine does not have.
        """
        engine = ray_engine(settings, added_targets)
        restarted = counts.count_restart
        passes = pass_processes(settings, sources, engine, restarted)
        lister = None if engine is not None else device_worker(sources, restarted)
        crashes = CrashTracker(settings.workers.crash_refusal_seconds)
        timeout = settings.jobs.job_timeout
        guard = memory_guard(settings, storage.store, passes.executor)
        admission = Admission(
            settings.workers.workers, settings.calls, PASS_POOL, counts.observer, guard.refusal
        )
        if engine is not None:
            engine.listen(lambda: admission.resize(max(1, passes.count())))
        return cls(
            engine=engine,
            passes=passes,
            devices=Devices(Jobs(lister or passes.executor, timeout)),
            device_worker=lister,
            memory=guard,
            jobs=Jobs(passes.executor, timeout, crashes, observer=counts.observer),
            admission=admission,
            native=native_compiles(
                settings, sources, engine, crashes, counts.observer, restarted, guard.refusal
            ),
        )


@dataclass(frozen=True)
class Compiling:
    """What serves requests.

    Attributes:
        compiler: Compiles graphs.
        artifacts: Makes artifacts of compiled modules.
        blobs: Takes uploads.
        fleet: Flights of the servers that share the store.
        forwarding: Asks the upstream; None without one.
        routes: Reads which servers a call has come through; None without an upstream.
        quotas: Quotas of tenants.
    """

    compiler: Compiler
    artifacts: Artifacts
    blobs: Blobs
    fleet: FleetFlights
    forwarding: Forwarding | None
    routes: Routes | None
    quotas: Quotas

    @classmethod
    def of(
        cls,
        settings: Settings,
        tables: PassTables,
        counts: Counts,
        storage: Storage,
        workers: Workers,
    ) -> Compiling:
        """Connect them to the store and the workers.

        Raises:
            OSError: A file for the upstream cannot be read.
        """
        store, catalog = storage.store, storage.catalog
        routes, forwarding = upstream(settings, workers.jobs, workers.admission, counts.observer)
        fleet = fleet_flights(settings, storage.shared, store, counts.deferred)
        quotas, costs = Quotas(settings.quotas), CodegenCosts()
        pipelines, explainer = Pipelines(tables.registry, tables.named), Explainer(store)
        compiler = Compiler(
            catalog=catalog,
            reader=RequestReader(settings.requests, pipelines, store if fleet.shares else None),
            explainer=explainer,
            maker=ModuleMaker(
                catalog=catalog,
                store=store,
                jobs=workers.jobs,
                admission=workers.admission,
                pipelines=pipelines,
                explainer=explainer,
                observer=counts.deferred,
                limits=settings.requests,
                quotas=quotas,
                costs=costs,
                plugins=tables.plugins,
            ),
            observer=counts.deferred,
            fleet=fleet,
            forwarded=None
            if forwarding is None
            else ForwardedModules(
                forwarding, catalog, store, pipelines, explainer, counts.deferred
            ),
        )
        stored = StoredArtifacts(store, catalog, storage.signer)
        forwarded = None
        if forwarding is not None:
            forwarded = ForwardedArtifacts(forwarding, catalog, stored, workers.native)
        artifacts = Artifacts(
            catalog=catalog,
            stored=stored,
            maker=ArtifactMaker(
                stored=stored,
                catalog=catalog,
                jobs=workers.jobs,
                admission=workers.admission,
                observer=counts.observer,
                native=workers.native,
                quotas=quotas,
                costs=costs,
                fleet=fleet,
                max_source_bytes=settings.requests.max_source_bytes,
                forwarded=forwarded,
            ),
            native=workers.native,
            fleet=fleet,
            observer=counts.observer,
            forwarded=forwarded,
        )
        blobs = Blobs(store, settings.uploads, fleet)
        return cls(compiler, artifacts, blobs, fleet, forwarding, routes, quotas)


@dataclass(frozen=True)
class Rpc:
    """What speaks gRPC.

    Attributes:
        interceptor: Lets calls in and counts them.
        server: Listens.
    """

    interceptor: CallInterceptor
    server: GrpcServer

    @classmethod
    def of(
        cls,
        settings: Settings,
        tables: PassTables,
        counts: Counts,
        storage: Storage,
        workers: Workers,
        compiling: Compiling,
    ) -> Rpc:
        """Connect the service to what serves it.

        Raises:
            OSError: A file of secrets or tokens cannot be used.
        """
        callers = authenticator(settings)
        calls, slots = settings.calls, settings.workers.workers
        pacing = RefusalPacing(calls.max_refused_rate)
        service = GraphCompilerService(
            compiler=compiling.compiler,
            artifacts=compiling.artifacts,
            blobs=compiling.blobs,
            ledger=counts.ledger,
            settle=counts.deferred.settle,
            registry=tables.registry,
            named=tables.named,
            limits=calls,
            decoder=Decoder(
                request_bounds(settings.requests, calls, settings.uploads), RequestMemory(calls)
            ),
            facts=ServerFacts(
                workers.passes.count if workers.engine is not None else lambda: slots,
                tuple(described(settings.limits)),
                lambda: workers.devices.infos,
                storage.signer,
                lambda: workers.native.targets,
                callers.identification,
                workers.passes.sandbox,
                lambda: workers.native.status,
                compiling.forwarding,
            ),
            store_stats=storage.store.stats,
            pacing=pacing,
        )
        interceptor = CallInterceptor(
            callers,
            compiling.quotas,
            counts.deferred,
            calls.max_call_seconds,
            pacing,
            compiling.routes,
        )
        server = GrpcServer(
            service,
            interceptor,
            max_message_bytes=int(calls.max_message_bytes),
            max_streams=calls.max_streams,
            max_metadata_bytes=int(calls.max_metadata_bytes),
            with_reflection=settings.addresses.reflection,
        )
        return cls(interceptor, server)


def export_state(counts: Counts, storage: Storage, workers: Workers, compiling: Compiling) -> None:
    """Export the state of these parts as gauges."""
    shared, engine, native = storage.shared, workers.engine, workers.native
    forwarding = compiling.forwarding
    gauges = Gauges(
        store=storage.store.tiers,
        stores_in_use=dict if shared is None else shared.available,
        in_flight=lambda: {
            "compile": compiling.compiler.in_flight,
            "render": compiling.artifacts.in_flight,
        },
        backlog=lambda: {
            "pass": workers.admission.backlog_seconds,
            "native": native.backlog_seconds,
        },
        memory_used=lambda: workers.memory.used_part,
        refusing=lambda: workers.memory.is_refusing,
        workers=workers.passes.count,
        devices=workers.devices.memory,
        sandbox=lambda: workers.passes.sandbox().layers,
        engine=dict if engine is None else lambda: engine.status.levels(),
        native_sandbox=lambda: native.layers,
        upstream_in_use=lambda: None if forwarding is None else forwarding.in_use,
    )
    export_levels(counts.metrics, gauges, counts.labels)
