"""Makes the parts of a server that take more than their settings as they are."""

from __future__ import annotations

import platform
from importlib.metadata import version

import torch

from lazyfx_server.compiling.dispatch.builds import Builds
from lazyfx_server.compiling.dispatch.crashes import CrashTracker
from lazyfx_server.compiling.dispatch.sending import Jobs
from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.compiling.limits.admission import Admission
from lazyfx_server.compiling.native_artifacts import NativeCompiles
from lazyfx_server.compiling.tenants import Tenants
from lazyfx_server.rpc.authentication import Authenticator
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import Builder, KeyRing, Signer
from lazyfx_server.settings.model import Settings
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
    signing = settings.signing
    builder = Builder(
        signing.server_name, version("lazyfx"), torch.__version__, platform.python_version()
    )
    return Signer(ring, builder, signing.signature_days * _DAY)


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
    native, jobs, builds = settings.native, None, None
    if pools is not None:
        jobs = Jobs(
            pools.jobs,
            native.native_timeout,
            crashes,
            setting="native_timeout",
            observer=observer,
        )
        builds = Builds(pools.builds, pools.compiler, native.native_timeout, observer, pools.owner)
    admission = Admission(native.native_workers, settings.calls)
    return NativeCompiles(
        jobs, builds, admission, native.native_compile_threads, observer,
        owner=None if pools is None else pools.owner, required=native.native == "on",
    )  # fmt: skip


def authenticator(settings: Settings) -> Authenticator:
    """What tells whose a call is.

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


def ledger_file(settings: Settings) -> LedgerFile | None:
    """Where the ledger is kept between starts; None without a store on disk."""
    folder = settings.store.store_path
    if folder is None:
        return None
    return LedgerFile(folder / ".ledger" / "counts.json")
