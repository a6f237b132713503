"""Builds the parts of a server that need more than their settings."""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version

import torch

from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.flights.fleet_flights import FleetFlights, FleetSettings
from lazyfx_server.compiling.forwarding.forwarding import Forwarding
from lazyfx_server.compiling.forwarding.link import UpstreamLink
from lazyfx_server.compiling.forwarding.upstream_keys import UpstreamKeys
from lazyfx_server.compiling.kernels.kernel_flights import KernelFlights
from lazyfx_server.compiling.kernels.kernel_store import KernelStore
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.compiling.limits.admission import NATIVE_POOL, Admission
from lazyfx_server.compiling.limits.memory_guard import MemoryFiles, MemoryGuard
from lazyfx_server.compiling.native_artifacts import KernelSharing, NativeCompiles
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.errors import UnavailableError
from lazyfx_server.execution import Executor, OnRestart, ProcessExecutor
from lazyfx_server.execution.ray_engine import RayEngine, RayExecutor
from lazyfx_server.memory_allocator import give_back_free_memory
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.rpc.tls import TlsFiles
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.settings.model import Settings
from lazyfx_server.settings.service_settings import CallerSettings, StoreSettings
from lazyfx_server.settings.upstream_settings import SYSTEM
from lazyfx_server.store import (
    MemoryStore,
    SharedIdentity,
    SharedStore,
    SharedStoreSettings,
    StoreHooks,
    TieredStore,
    open_shared_store,
    open_store,
)
from lazyfx_server.telemetry import EntryCorrupt, Observer, UpstreamTransferred
from lazyfx_server.upstream.calls import GrpcUpstreamCalls, UpstreamAddress
from lazyfx_server.upstream.own_token import OwnToken
from lazyfx_server.upstream.route import Routes
from lazyfx_server.workers.local_pools import local_natives
from lazyfx_server.workers.pools import NativeUnavailable, Sources, pass_workers, protection
from lazyfx_server.workers.ray_node import PASSES
from lazyfx_server.workers.ray_pools import RayBuilders, pass_sandbox

_DAY = 86_400.0


def artifact_signer(settings: Settings) -> Signer:
    """The signer of artifacts, with the key from the settings.

    Raises:
        OSError: The key file cannot be used.
    """
    try:
        ring = KeyRing(settings.signing_key_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    signing = settings.signing
    builder = Builder(
        signing.server_name, version("lazyfx"), torch.__version__, platform.python_version()
    )
    return Signer(ring, builder, signing.signature_days * _DAY)


def native_compiles(
    settings: Settings,
    sources: Sources,
    engine: RayEngine | None,
    crashes: CrashTracker,
    observer: Observer,
    on_restart: OnRestart,
    pressure: Callable[[], UnavailableError | None],
    kernels: KernelFlights,
) -> NativeCompiles:
    """The compiler of native artifacts.

    Args:
        settings: All settings.
        sources: Start worker processes.
        engine: Runs jobs elsewhere; None if worker processes of this machine do.
        crashes: Remembers graphs on which workers died.
        observer: Notified of each compile.
        on_restart: Called for each replaced worker.
        pressure: Returns why no new work is accepted at present, or None.
        kernels: Provides kernels that have been compiled before.

    Raises:
        OSError: Native artifacts are required but cannot be built.
    """
    native = settings.native
    required, forwards = native.native == "on", settings.upstream.upstream is not None

    sharing: KernelSharing = native.kernel_sharing if native.shares_kernels else "none"

    def queue(slots: int) -> Admission:
        return Admission(slots, settings.calls, NATIVE_POOL, observer, pressure)

    if engine is not None and native.native != "off":
        nodes = RayBuilders(engine, native.native_timeout, crashes, observer)
        compiles = NativeCompiles(nodes, queue, observer, forwards=forwards, sharing=sharing)
        engine.listen(compiles.count_workers)
        return compiles
    try:
        made = local_natives(native, sources, crashes, observer, on_restart, kernels)
    except NativeUnavailable as error:
        if required:
            raise OSError(f"--native: {error}") from error
        unavailable = NativeCompiles(None, queue, observer, forwards=forwards)
        unavailable.disable(str(error))
        return unavailable
    builders = None if made is None else made[0]
    return NativeCompiles(
        builders, queue, observer, required=required, forwards=forwards, sharing=sharing
    )


@dataclass(frozen=True)
class PassWorkers:
    """The workers that run passes.

    Attributes:
        executor: Sends jobs to them.
        sandbox: How they are confined.
        count: How many there are.
    """

    executor: Executor
    sandbox: Callable[[], pb.SandboxStatus]
    count: Callable[[], int]


def pass_processes(
    settings: Settings, sources: Sources, engine: RayEngine | None, on_restart: OnRestart
) -> PassWorkers:
    """The workers that run passes: processes of this machine, or of the nodes of an engine.

    Raises:
        OSError: The settings require a stricter sandbox than this kernel supports.
    """
    if engine is not None:
        nodes = RayExecutor(engine, PASSES)
        return PassWorkers(nodes, partial(pass_sandbox, engine), lambda: nodes.workers)
    held = protection(settings.workers)
    executor = pass_workers(settings.workers, settings.jobs, sources, held.layers, on_restart)
    sandbox = pb.SandboxStatus(layers=held.layers, missing=held.missing)
    return PassWorkers(executor, lambda: sandbox, lambda: len(executor.pids))


def memory_guard(
    settings: Settings, store: MemoryStore | TieredStore, executor: Executor
) -> MemoryGuard:
    """What refuses new work while the memory is nearly used up, and frees memory meanwhile."""

    def free_memory() -> None:
        store.trim()
        if isinstance(executor, ProcessExecutor):
            executor.trim()
        give_back_free_memory()

    return MemoryGuard(MemoryFiles().read, settings.workers.memory_mark, free_memory)


def upstream(
    settings: Settings, jobs: Jobs, admission: Admission, observer: Observer
) -> tuple[Routes | None, Forwarding | None]:
    """What reads the routes of calls, and what forwards them; None for each without an upstream.

    Args:
        settings: All settings.
        jobs: Checks graphs in worker processes.
        admission: Bounds that work.
        observer: Told of what is forwarded.

    Raises:
        OSError: The file of its authorities or of the token cannot be read.
    """
    given, ca = settings.upstream, settings.upstream.upstream_ca
    if given.upstream is None:
        return None, None
    roots = None if ca is None or ca == SYSTEM else ca.read_bytes()
    token = None if given.upstream_token is None else OwnToken(given.upstream_token)
    pinned = [bytes.fromhex(key) for key in given.upstream_verify_keys]
    routes = Routes()
    calls = GrpcUpstreamCalls(
        UpstreamAddress(given.upstream, roots, ca is not None),
        own_id=routes.own_id,
        own_authorization=None if token is None else token.authorization,
        shows_callers=settings.callers.tokens is not None,
        on_bytes=lambda sent, received: observer.observe(UpstreamTransferred(sent, received)),
    )
    return routes, Forwarding(
        calls=calls,
        link=UpstreamLink(calls.address, calls.is_serving, given.upstream_wait_seconds),
        keys=UpstreamKeys(pinned or None),
        jobs=jobs,
        admission=admission,
        observer=observer,
        limits=settings.requests,
    )


def authenticator(settings: Settings) -> Authenticator:
    """The authenticator of calls.

    Raises:
        OSError: A file of secrets or tokens cannot be used.
    """
    callers = settings.callers
    try:
        tenants = Tenants(secret_of(settings.tenant_secret_file))
        tokens = TokenFile(callers.tokens) if callers.tokens is not None else None
    except (SecretFileError, TokenFileError) as error:
        raise OSError(str(error)) from error
    certificates = callers.client_ca is not None
    return Authenticator(tenants, tokens, certificates, frozenset(callers.client_names))


def shared_store(settings: Settings, signer: Signer, hooks: StoreHooks) -> SharedStore | None:
    """The store that this server shares with others; None without one.

    Raises:
        OSError: The file of the tenants' secret cannot be used.
        SharedStoreError: The URL of a store cannot be used.
        StoreError: The folder of large entries cannot be used.
    """
    store = settings.store
    if store.store is None:
        return None
    try:
        secret = secret_of(settings.tenant_secret_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    otherwise = "or name another store: another database, bucket or prefix"
    identity = SharedIdentity(
        secret,
        lambda: [key.public_key for key in signer.verify_keys],
        f"copy their file of --tenant-secret to {settings.tenant_secret_file}, {otherwise}",
        f"copy their file of --signing-key to {settings.signing_key_file}, {otherwise}",
    )
    return open_shared_store(
        SharedStoreSettings(
            store.store,
            store.blobs,
            store.store_path,
            store.store_disk_bytes,
            store.store_wait_seconds,
            max(1, int(store.store_ttl_days * _DAY)),
            store.store_lease_seconds,
        ),
        identity,
        hooks,
    )


def store_of(
    settings: StoreSettings, shared: SharedStore | None, hooks: StoreHooks
) -> MemoryStore | TieredStore:
    """The store of this server, over the one that it shares, if any.

    Raises:
        StoreError: Its folder cannot be used.
    """
    return open_store(
        settings.store_path,
        memory_bytes=settings.store_memory_bytes,
        disk_bytes=settings.store_disk_bytes,
        shared=shared,
        on_error=hooks.on_error,
        on_recovered=hooks.on_recovered,
        on_corrupt=hooks.on_corrupt,
    )


def tls_files(settings: CallerSettings) -> TlsFiles | None:
    """The files of the server's certificate; None without TLS."""
    if settings.server_certificate is None or settings.server_key is None:
        return None
    return TlsFiles(settings.server_certificate, settings.server_key, settings.client_ca)


def fleet_flights(
    settings: Settings,
    shared: SharedStore | None,
    store: MemoryStore | TieredStore,
    observer: Observer,
) -> FleetFlights:
    """The flights of the servers that share a store.

    Args:
        settings: All settings.
        shared: What this server shares with others.
        store: Its store, over that.
        observer: Told how flights end.
    """
    over_shared = store if shared is not None and isinstance(store, TieredStore) else None
    leases = None if shared is None else shared.leases
    waits = FleetSettings(settings.store.store_hedge_seconds, settings.store.store_wait_seconds)
    return FleetFlights(leases, over_shared, observer, waits)


def kernel_flights(
    settings: Settings,
    store: MemoryStore | TieredStore,
    fleet: FleetFlights,
    observer: Observer,
) -> KernelFlights:
    """What provides compiled kernels, from the store of this server.

    Raises:
        OSError: The file of the tenants' secret cannot be used.
    """
    try:
        secret = secret_of(settings.tenant_secret_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    *_, lowest = store.tiers()
    kernels = KernelStore(store, secret, lambda: observer.observe(EntryCorrupt(lowest)))
    return KernelFlights(kernels, fleet, observer)


def ledger_file(settings: Settings) -> LedgerFile | None:
    """The file of the ledger; None without a store on disk."""
    folder = settings.store.store_path
    if folder is None:
        return None
    return LedgerFile(folder / ".ledger" / "counts.json")
