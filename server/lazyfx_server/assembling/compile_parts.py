"""What serves requests, between gRPC and the workers."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.assembling.pass_tables import PassTables
from lazyfx_server.assembling.store_parts import Storage
from lazyfx_server.assembling.worker_parts import Workers
from lazyfx_server.compiling.artifact_making import ArtifactMaker
from lazyfx_server.compiling.artifacts import Artifacts
from lazyfx_server.compiling.blobs.intake import Blobs
from lazyfx_server.compiling.blobs.shared_parts import BUCKET_PART_BYTES, PART_BYTES
from lazyfx_server.compiling.compile import Compiler
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.forwarding.forwarded_artifacts import ForwardedArtifacts
from lazyfx_server.compiling.forwarding.forwarded_modules import ForwardedModules
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.forwarding.link import UpstreamLink
from lazyfx_server.compiling.forwarding.upstream_keys import UpstreamKeys
from lazyfx_server.compiling.generation_costs import CodegenCosts
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.limits.quotas import Quotas
from lazyfx_server.compiling.miss_reasons import Explainer
from lazyfx_server.compiling.module_making import ModuleMaker
from lazyfx_server.compiling.pipelines import Pipelines
from lazyfx_server.compiling.prefetching.job_memory import JobMemory
from lazyfx_server.compiling.prefetching.prefetching import Prefetching
from lazyfx_server.compiling.request import RequestReader
from lazyfx_server.compiling.stored_artifacts import StoredArtifacts
from lazyfx_server.settings.model import Settings
from lazyfx_server.settings.upstream_settings import SYSTEM
from lazyfx_server.telemetry import Observer, UpstreamTransferred
from lazyfx_server.upstream.calls import GrpcUpstreamCalls, UpstreamAddress
from lazyfx_server.upstream.inbound_call import InboundCalls
from lazyfx_server.upstream.own_token import OwnToken
from lazyfx_server.upstream.upstream_tls import UpstreamTls


@dataclass(frozen=True)
class Compiling:
    """What serves requests.

    Attributes:
        compiler: Compiles graphs.
        artifacts: Makes artifacts of compiled modules.
        prefetching: Finds what jobs asked for when they last ran.
        blobs: Takes uploads.
        forwarding: Asks the upstream; None without one.
        inbound: Reads which servers a call has come through; None without an upstream.
        quotas: Quotas of tenants.
    """

    compiler: Compiler
    artifacts: Artifacts
    prefetching: Prefetching
    blobs: Blobs
    forwarding: Forwarding | None
    inbound: InboundCalls | None
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
        inbound, forwarding = upstream(settings, workers.jobs, workers.admission, counts.observer)
        fleet = storage.fleet
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
        artifacts = artifacts_of(settings, counts, storage, workers, quotas, costs, forwarding)
        piece = PART_BYTES if settings.store.blobs is None else BUCKET_PART_BYTES
        blobs = Blobs(store, settings.uploads, fleet, storage.shared, piece)
        prefetching = Prefetching(JobMemory(store), compiler, artifacts)
        return cls(compiler, artifacts, prefetching, blobs, forwarding, inbound, quotas)


def artifacts_of(
    settings: Settings,
    counts: Counts,
    storage: Storage,
    workers: Workers,
    quotas: Quotas,
    costs: CodegenCosts,
    forwarding: Forwarding | None,
) -> Artifacts:
    """What serves the artifacts of compiled modules."""
    catalog = storage.catalog
    stored = StoredArtifacts(storage.store, catalog, storage.signer)
    forwarded = None
    if forwarding is not None:
        forwarded = ForwardedArtifacts(forwarding, catalog, stored, workers.native)
    maker = ArtifactMaker(
        stored=stored,
        catalog=catalog,
        jobs=workers.jobs,
        admission=workers.admission,
        observer=counts.observer,
        native=workers.native,
        quotas=quotas,
        costs=costs,
        fleet=storage.fleet,
        max_source_bytes=settings.requests.max_source_bytes,
        forwarded=forwarded,
    )
    return Artifacts(
        catalog=catalog,
        stored=stored,
        maker=maker,
        native=workers.native,
        fleet=storage.fleet,
        observer=counts.observer,
        forwarded=forwarded,
    )


def upstream(
    settings: Settings, jobs: Jobs, admission: Admission, observer: Observer
) -> tuple[InboundCalls | None, Forwarding | None]:
    """What reads where calls came from, and what forwards them; None for each without an upstream.

    Args:
        settings: All settings.
        jobs: Checks graphs in worker processes.
        admission: Bounds that work.
        observer: Told of what is forwarded.

    Raises:
        OSError: A file of certificates or of the token cannot be read.
    """
    given, ca = settings.upstream, settings.upstream.upstream_ca
    if given.upstream is None:
        return None, None
    tls = None
    if ca is not None:
        roots = None if ca == SYSTEM else ca
        tls = UpstreamTls(roots, given.upstream_certificate, given.upstream_key)
    token = None if given.upstream_token is None else OwnToken(given.upstream_token)
    pinned = [bytes.fromhex(key) for key in given.upstream_verify_keys]
    inbound = InboundCalls()
    calls = GrpcUpstreamCalls(
        UpstreamAddress(given.upstream, tls),
        own_id=inbound.own_id,
        own_authorization=None if token is None else token.authorization,
        shows_callers=settings.callers.tokens is not None,
        on_bytes=lambda sent, received: observer.observe(UpstreamTransferred(sent, received)),
    )
    return inbound, Forwarding(
        calls=calls,
        link=UpstreamLink(calls.address, calls.is_serving, given.upstream_wait_seconds),
        keys=UpstreamKeys(pinned or None),
        jobs=jobs,
        admission=admission,
        observer=observer,
        limits=settings.requests,
    )
