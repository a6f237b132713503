"""Settings split into the parts that rooms get."""

from __future__ import annotations

import platform
from dataclasses import fields
from importlib.metadata import version
from typing import Any

import torch

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.limits.quotas import QuotaLimits
from lazyfx_server.compiling.limits.request_limits import RequestLimits
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError
from lazyfx_server.security.graph_bounds import GraphBounds
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.settings.loading import Settings
from lazyfx_server.telemetry import Observer
from lazyfx_server.workers.pools import NativePools

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
    settings: Settings, pools: NativePools | None, crashes: CrashTracker, observer: Observer
) -> NativeCompiles:
    """What makes native artifacts.

    Args:
        settings: All settings.
        pools: Run native jobs and compiles; None when the settings want no native artifacts.
        crashes: Remembers graphs on which workers died.
        observer: Is told of each compile.
    """
    jobs = builds = None
    if pools is not None:
        jobs = Jobs(
            pools.jobs,
            settings.native_timeout,
            crashes,
            setting="native_timeout",
            observer=observer,
        )
        builds = Builds(
            pools.builds, pools.compiler, settings.native_timeout, observer, pools.owner
        )
    admission = Admission(settings.native_workers, settings.max_queue)
    return NativeCompiles(
        jobs, builds, admission, settings.native_compile_threads, observer,
        owner=None if pools is None else pools.owner, required=settings.native == "on",
    )  # fmt: skip


def authenticator(settings: Settings) -> Authenticator:
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
    return Authenticator(tenants, tokens, certificates, frozenset(settings.client_names))


def quota_limits(settings: Settings) -> QuotaLimits:
    """What each tenant may use."""
    return QuotaLimits(
        requests=settings.quota_requests,
        bytes=settings.quota_bytes,
        compile_seconds=settings.quota_compile_seconds,
    )


def request_limits(settings: Settings) -> RequestLimits:
    """The bounds of requests and jobs: settings of the same names."""

    def of(kind: type[Any]) -> dict[str, Any]:
        names = [field.name for field in fields(kind) if field.name != "graph"]
        return {name: getattr(settings, name) for name in names}

    return RequestLimits(**of(RequestLimits), graph=GraphBounds(**of(GraphBounds)))


def ledger_file(settings: Settings) -> LedgerFile | None:
    """Where the ledger is kept between starts; None without a store on disk."""
    if settings.store_path is None:
        return None
    return LedgerFile(settings.store_path / ".ledger" / "counts.json")
