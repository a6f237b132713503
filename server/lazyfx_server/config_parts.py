"""Settings split into the parts that rooms get."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from lazyfx_server.compiling.admission import Admission
from lazyfx_server.compiling.builds import Builds
from lazyfx_server.compiling.jobs import Jobs
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.compiling.limits import RequestLimits
from lazyfx_server.compiling.native import NativeCompiles
from lazyfx_server.compiling.quotas import QuotaLimits
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.config import Settings
from lazyfx_server.pools import NativePools
from lazyfx_server.rpc.door import Door
from lazyfx_server.security.bounds import GraphBounds
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.security.tokens import TokenFile, TokenFileError
from lazyfx_server.telemetry import Observer

_DAY = 86_400.0


def artifact_signer(settings: Settings) -> Signer:
    """What signs artifacts, with the key that the settings name.

    Raises:
        OSError: The key file cannot be used.
    """
    try:
        ring = KeyRing(settings.signing_key_file)
    except SecretFileError as error:
        raise OSError(str(error)) from error
    builder = Builder(
        settings.server_name, version("lazyfx"), torch.__version__, platform.python_version()
    )
    return Signer(ring, builder, settings.signature_days * _DAY)


def native_compiles(
    settings: Settings, pools: NativePools | None, observer: Observer
) -> NativeCompiles:
    """What makes native artifacts.

    Args:
        settings: All settings.
        pools: Run native jobs and compiles; None when the settings want no native artifacts.
        observer: Is told of each compile.
    """
    jobs = builds = None
    if pools is not None:
        jobs = Jobs(pools.jobs, settings.native_timeout, "native_timeout", observer)
        builds = Builds(
            pools.builds, pools.compiler, settings.native_timeout, observer, pools.owner
        )
    admission = Admission(settings.native_workers, settings.max_queue)
    return NativeCompiles(
        jobs, builds, admission, settings.native_compile_threads, observer,
        owner=None if pools is None else pools.owner, required=settings.native == "on",
    )  # fmt: skip


def door(settings: Settings) -> Door:
    """What tells whose a call is.

    Raises:
        OSError: A file of secrets or tokens cannot be used.
    """
    try:
        tenants = Tenants(secret_of(settings.tenant_secret_file))
        tokens = TokenFile(settings.tokens) if settings.tokens is not None else None
    except (SecretFileError, TokenFileError) as error:
        raise OSError(str(error)) from error
    certificates = settings.client_ca is not None
    return Door(tenants, tokens, certificates, frozenset(settings.client_names))


def quota_limits(settings: Settings) -> QuotaLimits:
    """What each tenant may use."""
    return QuotaLimits(
        requests=settings.quota_requests,
        bytes=settings.quota_bytes,
        compile_seconds=settings.quota_compile_seconds,
    )


def request_limits(settings: Settings) -> RequestLimits:
    """The bounds of requests and jobs."""
    return RequestLimits(
        max_message_bytes=settings.max_message_bytes,
        max_graph_bytes=settings.max_graph_bytes,
        max_blob_bytes=settings.max_blob_bytes,
        max_nodes=settings.max_nodes,
        max_passes=settings.max_passes,
        max_rewrites=settings.max_rewrites,
        max_matches=settings.max_matches,
        max_match_steps=settings.max_match_steps,
        max_folded_bytes=settings.max_folded_bytes,
        max_pass_seconds=settings.max_pass_seconds,
        job_timeout=settings.job_timeout,
        max_queue=settings.max_queue,
        max_batch_in_flight=settings.max_batch_in_flight,
        max_streams=settings.max_streams,
        max_metadata_bytes=settings.max_metadata_bytes,
        max_staged_bytes=settings.max_staged_bytes,
        max_call_seconds=settings.max_call_seconds,
        min_upload_rate=settings.min_upload_rate,
        upload_idle_timeout=settings.upload_idle_timeout,
        stream_idle_timeout=settings.stream_idle_timeout,
        job_cpu_seconds=settings.job_cpu_seconds,
        worker_memory_bytes=settings.worker_memory_bytes,
        graph=GraphBounds(
            max_edges=settings.max_edges,
            max_calls=settings.max_calls,
            max_arguments=settings.max_arguments,
            max_string_bytes=settings.max_string_bytes,
            max_rank=settings.max_rank,
            max_elements=settings.max_elements,
            max_outputs=settings.max_outputs,
            max_source_bytes=settings.max_source_bytes,
        ),
    )


def ledger_file(settings: Settings) -> LedgerFile | None:
    """Where the ledger is kept between starts; None without a store on disk."""
    if settings.store_path is None:
        return None
    return LedgerFile(settings.store_path / ".ledger" / "counts.json")
