"""What speaks gRPC."""

from __future__ import annotations

from dataclasses import dataclass

from lazyfx_server.assembling.compile_parts import Compiling
from lazyfx_server.assembling.event_counts import Counts
from lazyfx_server.assembling.pass_tables import PassTables
from lazyfx_server.assembling.store_parts import Storage
from lazyfx_server.assembling.worker_parts import Workers
from lazyfx_server.compiling.limits.held_bytes import RequestMemory
from lazyfx_server.compiling.limits.request_checks import described
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.rpc.calls_in_progress import CallsInProgress
from lazyfx_server.rpc.grpc_server import GrpcServer
from lazyfx_server.rpc.hits_at_once import HitsAtOnce
from lazyfx_server.rpc.interceptors import CallInterceptor
from lazyfx_server.rpc.message_bounds import request_bounds
from lazyfx_server.rpc.pacing import RefusalPacing
from lazyfx_server.rpc.request_decoding import Decoder
from lazyfx_server.rpc.service import GraphCompilerService, ServerFacts
from lazyfx_server.rpc.transport.tls import TlsFiles
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.settings.model import Settings
from lazyfx_server.settings.service_settings import CallerSettings


@dataclass(frozen=True)
class Rpc:
    """What speaks gRPC.

    Attributes:
        calls: The calls in progress.
        server: Listens.
    """

    calls: CallsInProgress
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
            prefetching=compiling.prefetching,
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
        in_progress = CallsInProgress(counts.deferred, calls.max_call_seconds, pacing)
        server = GrpcServer(
            service,
            CallInterceptor(
                in_progress,
                callers,
                compiling.quotas,
                compiling.inbound,
                HitsAtOnce(compiling.compiler.in_memory, compiling.quotas, counts.deferred),
            ),
            in_progress,
            max_message_bytes=int(calls.max_message_bytes),
            max_streams=calls.max_streams,
            max_metadata_bytes=int(calls.max_metadata_bytes),
            with_reflection=settings.addresses.reflection,
        )
        return cls(in_progress, server)


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


def tls_files(settings: CallerSettings) -> TlsFiles | None:
    """The files of the server's certificate; None without TLS."""
    if settings.server_certificate is None or settings.server_key is None:
        return None
    return TlsFiles(settings.server_certificate, settings.server_key, settings.client_ca)
