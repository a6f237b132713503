"""The compiling parts of a server in this process, over a store on disk: no network, no workers."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from lazyfx_server.compiling.artifact_making import ArtifactMaker
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.catalog import Catalog
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.miss_reasons import Explainer
from lazyfx_server.compiling.module_making import ModuleMaker
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.request import RequestReader
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts
from lazyfx_server.compiling.tenants import Tenant, Tenants
from lazyfx_server.errors import UnavailableError
from lazyfx_server.execution import Executor
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.plugins import registry_with
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.rpc.request_decoding import Decoder
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.settings.limits import (
    CallLimits,
    QuotaLimits,
    RequestLimits,
    UploadLimits,
)
from lazyfx_server.store import open_store
from lazyfx_server.telemetry import Event


class Recorder:
    """Keeps the events that it observes."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def observe(self, event: Event) -> None:
        self.events.append(event)

    def count(self, kind: type, **attributes: object) -> int:
        """How many events of a kind have these attributes."""
        return sum(
            isinstance(event, kind)
            and all(getattr(event, name) == value for name, value in attributes.items())
            for event in self.events
        )


@dataclass
class Parts:
    decoder: Decoder
    compiler: Compiler
    artifacts: Artifacts
    tenant: Tenant
    recorder: Recorder


@asynccontextmanager
async def compiling_parts(
    folder: Path,
    executor: Executor,
    queue: int = 1024,
    pressure: Callable[[], UnavailableError | None] | None = None,
) -> AsyncIterator[Parts]:
    """A compiler and its artifacts around an executor."""
    limits, calls = RequestLimits(), CallLimits(max_queue=queue)
    recorder = Recorder()
    store = open_store(folder, memory_bytes=2**26, disk_bytes=2**30)
    await executor.start()
    crashes = CrashTracker(600.0)
    jobs = Jobs(executor, 120.0, crashes, observer=recorder)
    admission = Admission(executor.workers, calls, pressure=pressure)
    catalog = Catalog(store)
    registry = registry_with([])
    quotas = Quotas(QuotaLimits())
    costs = CodegenCosts()
    fleet = FleetFlights(None, None, recorder, FleetSettings())
    builder = Builder("test", version("lazyfx"), torch.__version__, platform.python_version())
    pipelines, explainer = Pipelines(registry, NamedPipelines(registry, {})), Explainer(store)
    compiler = Compiler(
        catalog=catalog,
        reader=RequestReader(limits, pipelines, None),
        explainer=explainer,
        maker=ModuleMaker(
            catalog=catalog,
            store=store,
            jobs=jobs,
            admission=admission,
            pipelines=pipelines,
            explainer=explainer,
            observer=recorder,
            limits=limits,
            quotas=quotas,
            costs=costs,
        ),
        observer=recorder,
        fleet=fleet,
    )
    stored = StoredArtifacts(store, catalog, Signer(KeyRing(None), builder, 86_400.0))
    native = NativeCompiles(None, lambda slots: Admission(slots, calls), recorder)
    artifacts = Artifacts(
        catalog=catalog,
        stored=stored,
        maker=ArtifactMaker(
            stored=stored,
            catalog=catalog,
            jobs=jobs,
            admission=admission,
            observer=recorder,
            native=native,
            quotas=quotas,
            costs=costs,
            fleet=fleet,
            max_source_bytes=limits.max_source_bytes,
        ),
        native=native,
        fleet=fleet,
        observer=recorder,
    )
    try:
        decoder = Decoder(request_bounds(limits, calls, UploadLimits()), RequestMemory(calls))
        yield Parts(decoder, compiler, artifacts, Tenants(b"secret").named(""), recorder)
    finally:
        await compiler.drain()
        await artifacts.drain()
        await executor.close()
        await store.close()
