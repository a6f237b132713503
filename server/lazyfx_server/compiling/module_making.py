"""Compiles a module that no cache has: queue, job, result, store."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.blobs.content_checks import stored_content
from lazyfx_server.compiling.catalog import Catalog, CompiledModule
from lazyfx_server.compiling.dispatch.crashes import Subject
from lazyfx_server.compiling.dispatch.job_parts import Buffer, CompileParts
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.single_flight import Flight
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import Admission, QueuedJob
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.limits.request_checks import check_body
from lazyfx_server.compiling.miss_reasons import Explainer, Miss
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.request import IncomingCompile, ResolvedRequest, kind_of_job
from lazyfx_server.compiling.tenants import Tenant
from lazyfx_server.errors import MissingInputsError
from lazyfx_server.settings.limits import PassLimits, RequestLimits
from lazyfx_server.store import Store
from lazyfx_server.telemetry import CompileFinished, LookupMade, Observer, PassFinished
from lazyfx_server.v1 import worker_pb2 as worker

_log = logging.getLogger(__name__)


class ModuleMaker:
    """Compiles graphs in worker processes.

    Args:
        catalog: Takes the compiled modules.
        store: Graph bodies and tensor values by digest.
        jobs: Runs jobs in worker processes.
        admission: Bounds that work.
        pipelines: Expands pass lists.
        explainer: Remembers what has been compiled.
        observer: Receives events.
        limits: Bounds on requests and jobs.
        quotas: Quotas of tenants.
        costs: Measured costs of code generation per graph.
        plugins: Object references by which workers find plugins.
    """

    def __init__(
        self,
        *,
        catalog: Catalog,
        store: Store,
        jobs: Jobs,
        admission: Admission,
        pipelines: Pipelines,
        explainer: Explainer,
        observer: Observer,
        limits: RequestLimits,
        quotas: Quotas,
        costs: CodegenCosts,
        plugins: Sequence[str] = (),
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._jobs = jobs
        self._admission = admission
        self._pipelines = pipelines
        self._explainer = explainer
        self._observer = observer
        self._limits = limits
        self._quotas = quotas
        self._costs = costs
        self._plugins = plugins

    async def make(
        self,
        incoming: IncomingCompile,
        resolved: ResolvedRequest,
        miss: Miss,
        flight: Flight[Any],
    ) -> CompiledModule:
        """Compile a module and store it.

        Args:
            incoming: The request.
            resolved: What it asks for.
            miss: Why nothing was found.
            flight: The flight that needs it.

        Raises:
            MissingInputsError: The graph, or values that a pass reads, must be uploaded first.
            OverloadedError, TimedOutError, InternalError: As the names say.
        """
        request, key, tenant = incoming.request, resolved.key, resolved.tenant
        queued_job = QueuedJob(tenant.name, kind_of_job(incoming, key), flight.urgency)
        async with self._admission.slot(queued_job) as queued:
            flight.mark_running()
            # Created only now, so that a queued job costs no more than its request.
            job = await self._job(incoming, tenant)
            # Only a miss that is compiled counts: a digest whose graph is missing is requested
            # again immediately.
            reason = pb.MissReason.Name(miss.reason)
            self._observer.observe(LookupMade("miss", reason, tenant.name))
            with self._quotas.charge_work(tenant):
                result = await self._jobs.compile(job, tenant.name, Subject(key.tenant, key.graph))
        flight.mark_finishing()
        report = result.report
        report.queue_seconds = queued
        report.created.GetCurrentTime()
        if request.HasField("graph"):
            await self._store.put(tenant.blob(key.graph), bytes(incoming.body))
        module = await self._catalog.add(tenant, resolved.digest, key, result)
        await self._explainer.remember(key)
        self._observe_compile(incoming, resolved, result)
        return module

    async def require_blobs(self, request: pb.CompileRequest, tenant: Tenant) -> None:
        """Report missing blobs at once, before waiting for anything.

        Raises:
            MissingInputsError: Names the blobs.
        """
        digests = {binding.content.sha256 for binding in request.values}
        if not request.HasField("graph"):
            digests.add(request.graph_digest.sha256)
        if not digests:
            return
        places = {tenant.blob(digest): digest for digest in digests}
        present = await self._store.contains(places)
        missing = sorted(digest for place, digest in places.items() if place not in present)
        if missing:
            subjects = [f"blobs/{digest.hex()}" for digest in missing]
            raise MissingInputsError("upload these blobs and try again", subjects)

    async def _job(self, incoming: IncomingCompile, tenant: Tenant) -> CompileParts:
        """Collect what the worker needs, or report what is missing."""
        request = incoming.request
        missing: list[str] = []
        body: Buffer | None = incoming.body
        if not request.HasField("graph"):
            digest = request.graph_digest.sha256
            body = await stored_content(self._store, tenant.blob(digest), digest)
            if body is None:
                missing.append(f"blobs/{digest.hex()}")
            else:
                check_body("graph_digest", body, self._limits)
        values: list[tuple[int, int, Buffer]] = []
        for binding in request.values:
            content = binding.content.sha256
            data = await stored_content(self._store, tenant.blob(content), content)
            if data is None:
                missing.append(f"blobs/{content.hex()}")
            else:
                values.append((binding.graph, binding.attribute, data))
        if missing or body is None:
            raise MissingInputsError("upload these blobs and try again", missing)
        measured = self._costs.of(tenant.tag, request.graph_digest.sha256)
        job = worker.CompileJob(
            passes=self._pipelines.expand(request.passes),
            plugins=self._plugins,
            limits=worker.JobLimits(**dict(PassLimits.of(self._limits))),
            presentation=request.graph.presentation,
            eager=request.eager,
            verify=request.verify,
            seconds_per_node=measured,
            cost_is_measured=measured > 0,
        )
        return CompileParts(job, body, values)

    def _observe_compile(
        self, incoming: IncomingCompile, resolved: ResolvedRequest, result: worker.CompileResult
    ) -> None:
        report = result.report
        passes: Sequence[PassFinished] = [
            PassFinished(p.name, p.seconds, p.recompiles.requested, p.recompiles.performed, p.runs)
            for p in report.passes
        ]
        in_passes = sum(p.requested for p in passes)
        _log.debug(
            "compiled graph %s: pipeline=%s nodes=%d->%d seconds=%.3f queue_seconds=%.3f tenant=%s",
            resolved.key.graph.hex(),
            report.pipeline or "(no passes)",
            report.nodes_before,
            report.nodes_after,
            report.seconds,
            report.queue_seconds,
            resolved.tenant.name or "-",
        )
        self._observer.observe(
            CompileFinished(
                seconds=report.seconds,
                pass_seconds=report.pass_seconds,
                codec_seconds=result.codec_seconds,
                queue_seconds=report.queue_seconds,
                overhead_seconds=max(
                    0.0, time.perf_counter() - incoming.arrived - report.pass_seconds
                ),
                saved_seconds=report.saved_seconds,
                passes=tuple(passes),
                pipeline_requested=report.recompiles.requested - in_passes,
                performed=tuple((p.pass_name, p.trigger, p.count) for p in result.performed),
                performed_seconds=report.performed_seconds,
                saved_is_measured=report.saved_basis == pb.ESTIMATE_BASIS_MEASURED,
                tenant=resolved.tenant.name,
            )
        )
