"""Settings of addresses, callers, processes, storage and logging."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Literal

from pydantic import ByteSize, Field, field_validator, model_validator
from typing_extensions import Self

from lazyfx.shared.addresses import is_loopback
from lazyfx_server.settings.name_lists import Names
from lazyfx_server.settings.part import GIB, MIB, Part

_STORE_SCHEMES = ("redis", "rediss", "unix", "s3")


def _default_workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def _default_store() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lazyfx"


class AddressSettings(Part):
    """Addresses on which the server listens."""

    group = "addresses"

    config: Path | None = None
    """TOML file to read settings from. Its keys are the names of these flags, with underscores."""

    listen: str = "127.0.0.1:8700"
    """Address of the gRPC service, HOST:PORT; port 0 picks a free port. An address that other
    machines can reach requires TLS and a way to identify callers, or --insecure."""

    insecure: bool = False
    """Allow an address that other machines can reach without TLS or without identifying callers.
    Anyone who reaches the port can then compile, read results by their keys, and eavesdrop. Use it
    only on networks that are protected by other means."""

    metrics_host: str = "127.0.0.1"
    """Host for /metrics, /healthz and /readyz."""

    metrics_port: int = Field(default=8701, ge=0, le=65535)
    """Port for /metrics, /healthz and /readyz; 0 picks a free port."""

    takeover_seconds: float = Field(default=0.0, ge=0)
    """Seconds to wait for another server to give up these addresses. For a restart that clients do
    not notice: start the successor with it, then stop the old server. Default: fail at once."""

    reflection: bool = False
    """Enable gRPC server reflection."""

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"must be HOST:PORT, e.g. 127.0.0.1:8700 or [::1]:8700, not {value!r}")
        if "/" in host or "@" in host:
            raise ValueError(
                f"must be HOST:PORT, not a URL: write {host.rpartition('/')[2]}:{port}"
            )
        return value

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.listen)


class CallerSettings(Part):
    """Encryption, and identification of callers."""

    group = "callers and encryption"

    server_certificate: Path | None = None
    """PEM file with this server's certificate chain; enables TLS. Reread when it changes."""

    server_key: Path | None = None
    """PEM file with the private key of --server-certificate."""

    client_ca: Path | None = None
    """PEM file with the authorities whose certificates callers must present (mTLS). Without
    --tokens, the common name is the tenant."""

    client_names: Names = []
    """Common names of the certificates to accept. Default: every certificate that --client-ca
    verifies."""

    tokens: Path | None = None
    """File with the bearer tokens of callers; `lazyfx token` adds to it. Reread when it changes."""

    tenant_secret: Path | None = None
    """File with the secret that separates the tenants' keys; created if missing. Servers that
    share a store must share it. Default: .keys/tenants.key in the store's folder."""

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.server_certificate is None) != (self.server_key is None):
            raise ValueError("--server-certificate and --server-key must be set together")
        if self.client_ca is not None and self.server_certificate is None:
            raise ValueError("--client-ca requires --server-certificate and --server-key")
        return self

    @property
    def exposure(self) -> str | None:
        """Why other machines must not reach the service; None if they may."""
        if self.server_certificate is None:
            return "traffic is not encrypted (--server-certificate, --server-key)"
        if self.tokens is None and self.client_ca is None:
            return "callers are not identified (--tokens or --client-ca)"
        return None


class WorkerSettings(Part):
    """The processes that run passes."""

    group = "workers"

    executor: str = "local"
    """Where jobs run. local: in worker processes on this machine. ray:local: on a Ray of its own on
    this machine. ray://HOST:PORT: on the nodes of the Ray cluster whose client server listens there
    (usually port 10001); --workers, --native-workers and the bounds of jobs then apply to each
    node. Requires lazyfx[ray]; docs/scale.md says what the cluster needs."""

    executor_start_seconds: float = Field(default=120.0, ge=0, le=3600)
    """Seconds that the start waits for the first node of a Ray cluster. After that, the server
    serves what is in its store, and all other requests when there is a node."""

    executor_fallback: bool = False
    """Run passes in --workers processes of this machine while no node of a Ray cluster can run
    them. Otherwise such requests fail with UNAVAILABLE until there is a node. Native compiles
    always wait for a node."""

    workers: int = Field(default=_default_workers(), ge=1, le=256)
    """Worker processes that run passes and render artifacts. Default: one less than the number of
    CPUs, at least 1 and at most 8."""

    worker_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads that torch uses in each worker."""

    worker_max_jobs: int = Field(default=1000, ge=1)
    """Jobs after which a worker process is replaced (Python never frees generated source)."""

    memory_mark: float = Field(default=0.9, gt=0, le=1)
    """Part of the memory (of the container, or else the machine) above which new compiles are
    refused with UNAVAILABLE, but not before less than 2 GiB are left. 1 never refuses them."""

    sandbox: Literal["auto", "required", "off"] = "auto"
    """Sandbox of the workers that run passes. auto: every layer that the kernel supports, with a
    warning if one is missing; required: refuse to start if a layer is missing; off: no sandbox."""

    crash_refusal_seconds: float = Field(default=600.0, ge=0)
    """Seconds for which a graph is refused after two workers died on it; 0 never refuses it."""

    @field_validator("executor")
    @classmethod
    def _executor_is_known(cls, value: str) -> str:
        host, separator, port = value.removeprefix("ray://").rpartition(":")
        if value.startswith("ray://") and host and separator and port.isdecimal():
            return value
        if value not in ("local", "ray:local"):
            raise ValueError(f"must be local, ray:local or ray://HOST:PORT, not {value!r}")
        return value

    @model_validator(mode="after")
    def _fallback_needs_a_cluster(self) -> Self:
        if self.executor_fallback and self.ray_address is None:
            raise ValueError("--executor-fallback requires --executor ray:local or ray://HOST:PORT")
        return self

    @property
    def ray_address(self) -> str | None:
        """The Ray cluster that runs jobs, as Ray calls it; None for workers on this machine."""
        if self.executor == "local":
            return None
        return self.executor.removeprefix("ray:") if self.executor == "ray:local" else self.executor


class StoreSettings(Part):
    """Storage of results."""

    group = "store"

    store_path: Path | None = _default_store()
    """Folder of the disk store, which survives restarts. An empty value keeps everything in
    memory. Default: $XDG_CACHE_HOME/lazyfx or ~/.cache/lazyfx."""

    store_memory_bytes: ByteSize = ByteSize(256 * MIB)
    """Maximum size of the memory store, e.g. 256MiB."""

    store_disk_bytes: ByteSize = ByteSize(4 * GIB)
    """Maximum size of the disk store; the least recently used entries are evicted first."""

    store: str | None = None
    """URL of a store that servers share: redis://HOST:PORT/DB (rediss:// for TLS; Valkey, too) or
    s3://BUCKET/PREFIX. Its servers must share --tenant-secret and --signing-key. Write passwords
    into LAZYFX_STORE or a settings file: flags are visible to other users."""

    blobs: str | None = None
    """URL of a bucket, s3://BUCKET/PREFIX, for entries over 1 MiB; requires a Redis as --store.
    Default: such entries are in the Redis, in pieces, up to 64 MiB, and in this server's folder."""

    store_wait_seconds: float = Field(default=0.05, gt=0, le=60)
    """Seconds that a request waits for --store or --blobs to begin an answer; a store that takes
    longer is not used until it is fast again."""

    store_publish_seconds: float | None = Field(default=None, gt=0, le=60)
    """Maximum seconds that an answer waits until other servers can find its result.
    Default: --store-wait-seconds."""

    store_ttl_days: float = Field(default=7.0, gt=0, le=3650)
    """Days after which an unused entry leaves a Redis."""

    store_lease_seconds: float = Field(default=2.5, ge=0.5, le=60)
    """Of servers that share a Redis, one makes a result, and the others wait for it. Seconds after
    which another one takes over if that one dies or freezes."""

    store_hedge_seconds: float = Field(default=10.0, ge=0.1, le=86_400)
    """Minimum seconds that a server waits for the result of another one before it makes it as well;
    three times the usual duration of such work if that is more."""

    @field_validator("store_path", "store", "blobs", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    # Their values are not shown: they may hold passwords.
    @field_validator("store")
    @classmethod
    def _store_is_url(cls, value: str | None) -> str | None:
        if value is not None and value.partition("://")[0] not in _STORE_SCHEMES:
            raise ValueError(f"must begin with {'://, '.join(_STORE_SCHEMES)}://")
        return value

    @field_validator("blobs")
    @classmethod
    def _blobs_is_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith("s3://"):
            raise ValueError("must begin with s3://")
        return value

    @model_validator(mode="after")
    def _blobs_beside_redis(self) -> Self:
        if self.blobs is not None and (self.store is None or self.store.startswith("s3://")):
            raise ValueError("--blobs requires a Redis as --store; --store s3:// needs no --blobs")
        return self

    def beside_keys(self, given: Path | None, name: str) -> Path | None:
        """The given file, else one of this name in the store; None without a store."""
        if given is None and self.store_path is not None:
            return self.store_path / ".keys" / name
        return given


class SigningSettings(Part):
    """Signing of artifacts."""

    group = "signatures"

    server_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """Name of this server in signed artifacts. Default: the host name."""

    signing_key: Path | None = None
    """File with the Ed25519 keys that sign artifacts (PEM; the first key signs); created if
    missing, reread when it changes. Default: .keys/signing.pem in the store's folder; without a
    store, a new key at each start."""

    signature_days: float = Field(default=30.0, gt=0)
    """Days for which the signature of an artifact is valid."""


class StoppingSettings(Part):
    """Shutdown of the server."""

    group = "stopping"

    drain_seconds: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight may take to finish after SIGTERM."""


class LogSettings(Part):
    """Logging."""

    group = "logs"

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity of the log lines to write."""

    log_format: Literal["text", "json"] = "text"
    """Format of log lines, which go to standard error."""
