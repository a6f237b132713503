"""What can be set about a server, with the defaults; `loading` reads it."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ByteSize, Field, field_validator, model_validator
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    SettingsConfigDict,
)
from typing_extensions import Self

from lazyfx.shared.addresses import is_loopback

MIB = 2**20
GIB = 2**30


def _default_workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def _default_store() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lazyfx"


def _names(given: Any) -> Any:
    """What a variable or a flag holds, as a list: names with commas between them, or JSON."""
    if isinstance(given, str):
        text = given.strip()
        return json.loads(text) if text.startswith("[") else _parts([text])
    return _parts(given) if isinstance(given, list) else given


def _parts(texts: list[Any]) -> list[Any]:
    if not all(isinstance(text, str) for text in texts):
        return texts
    return [part.strip() for text in texts for part in text.split(",") if part.strip()]


# Not decoded by the sources: that of the environment knows JSON alone.
Names = Annotated[list[str], NoDecode, BeforeValidator(_names)]


class Settings(BaseSettings):
    """Settings of `lazyfx serve`."""

    model_config = SettingsConfigDict(
        env_prefix="LAZYFX_",
        frozen=True,
        extra="forbid",
        cli_kebab_case=True,
        cli_implicit_flags=True,
        cli_hide_none_type=True,
        cli_avoid_json=True,
        use_attribute_docstrings=True,
        nested_model_default_partial_update=False,
    )

    config: Path | None = None
    """TOML file to read settings from. Its keys are the names of these flags, with underscores."""

    listen: str = "127.0.0.1:8700"
    """Address of the gRPC service, HOST:PORT; port 0 picks a free port. An address that other
    machines can reach requires TLS and a way to identify callers, or --insecure."""

    insecure: bool = False
    """Allow an address that other machines can reach without TLS or without identifying callers.
    Anyone who reaches the port can then compile, read results by their keys, and eavesdrop. Use it
    only on networks that are protected by other means."""

    server_certificate: Path | None = None
    """PEM file with this server's certificate chain; enables TLS. Reread when it changes."""

    server_key: Path | None = None
    """PEM file with the private key of --server-certificate."""

    client_ca: Path | None = None
    """PEM file with the authorities whose certificates callers must present (mTLS). Without
    --tokens, the common name is the tenant."""

    client_names: Names = Field(default=[])
    """Common names of the certificates to accept. Default: every certificate that --client-ca
    verifies."""

    tokens: Path | None = None
    """File with the bearer tokens of callers; `lazyfx token` adds to it. Reread when it changes."""

    tenant_secret: Path | None = None
    """File with the secret that separates the tenants' keys; created if missing. Servers that
    share a store must share it. Default: .keys/tenants.key in the store's folder."""

    quota_requests: int | None = Field(default=None, ge=1)
    """Requests per minute that one tenant may make; each request of a batch counts. Default: no
    quota."""

    quota_bytes: ByteSize | None = None
    """Bytes per hour that one tenant may send. Default: no quota."""

    quota_compile_seconds: float | None = Field(default=None, gt=0)
    """Seconds of worker time per hour that one tenant may use. Default: no quota."""

    metrics_host: str = "127.0.0.1"
    """Host for /metrics, /healthz and /readyz."""

    metrics_port: int = Field(default=8701, ge=0, le=65535)
    """Port for /metrics, /healthz and /readyz; 0 picks a free port."""

    workers: int = Field(default=_default_workers(), ge=1, le=256)
    """Worker processes that run passes and render artifacts. Default: one less than the number of
    CPUs, at least 1 and at most 8."""

    worker_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads that torch uses in each worker."""

    worker_memory_bytes: ByteSize = Field(default=ByteSize(8 * GIB))
    """Address space that a worker may allocate beyond what it starts with."""

    sandbox: Literal["auto", "required", "off"] = "auto"
    """Sandbox of the workers that run passes. auto: every layer that the kernel supports, with a
    warning if one is missing; required: refuse to start if a layer is missing; off: no sandbox."""

    worker_max_jobs: int = Field(default=1000, ge=1)
    """Jobs after which a worker process is replaced (Python never frees generated source)."""

    store_path: Path | None = Field(default=_default_store())
    """Folder of the disk store, which survives restarts. An empty value keeps everything in
    memory. Default: $XDG_CACHE_HOME/lazyfx or ~/.cache/lazyfx."""

    store_memory_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Maximum size of the memory store, e.g. 256MiB."""

    store_disk_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Maximum size of the disk store; the least recently used entries are evicted first."""

    max_message_bytes: ByteSize = Field(default=ByteSize(4 * MIB))
    """Maximum size of a gRPC message. gRPC copies messages on the event loop, which delays other
    calls by 2 ms per MiB. Larger graphs and tensors are sent in chunks."""

    max_held_bytes: ByteSize = Field(default=ByteSize(512 * MIB))
    """Maximum bytes of requests in memory, queued or running. Requests beyond it are refused with
    RESOURCE_EXHAUSTED. Small requests are not counted."""

    max_held_bytes_per_tenant: ByteSize = Field(default=ByteSize(256 * MIB))
    """The same for one tenant. On a server that does not identify callers, all callers are one
    tenant."""

    max_graph_bytes: ByteSize = Field(default=ByteSize(32 * MIB))
    """Maximum size of a graph body."""

    max_presentation_bytes: ByteSize = Field(default=ByteSize(16 * MIB))
    """Maximum size of the names that accompany a graph."""

    max_blob_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Maximum size of a tensor sent with UploadBlobs."""

    max_nodes: int = Field(default=200_000, ge=1)
    """Maximum number of nodes of a graph, nested graphs included."""

    max_edges: int = Field(default=2_000_000, ge=1)
    """Maximum number of uses of nodes by other nodes in a graph, nested graphs included."""

    max_calls: int = Field(default=200_000, ge=1)
    """Maximum number of distinct calls (target and literal arguments) of a graph."""

    max_arguments: int = Field(default=100_000, ge=1)
    """Maximum number of arguments of one call, including those inside lists and dicts."""

    max_string_bytes: ByteSize = Field(default=ByteSize(MIB))
    """Maximum length of a string in a graph, in characters."""

    max_rank: int = Field(default=64, ge=0, le=64)
    """Maximum number of dimensions of a tensor."""

    max_elements: int = Field(default=2**48, ge=1)
    """Maximum number of elements of a described tensor, whether or not its values exist."""

    max_outputs: int = Field(default=10_000, ge=1)
    """Maximum number of outputs of one node."""

    max_source_bytes: ByteSize = Field(default=ByteSize(128 * MIB))
    """Maximum length of the Python source of a graph, as estimated before it is generated, with
    names and literals written out at each use."""

    max_passes: int = Field(default=64, ge=0)
    """Maximum number of passes of one request."""

    max_option_bytes: ByteSize = Field(default=ByteSize(64 * 1024))
    """Maximum size of the value of a pass option; the items of a list count together."""

    max_values: int = Field(default=16_384, ge=0)
    """Maximum number of tensors whose values one request may bind."""

    max_digests: int = Field(default=1024, ge=1)
    """Maximum number of blobs that one FindMissingBlobs may ask for."""

    pass_plugins: Names = Field(default=[])
    """Entry points of the group lazyfx.passes to load, by name. A plugin is code that runs in the
    server and its workers; only the plugins named here are loaded."""

    pipelines: str = ""
    """Additional named pipelines: NAME=PASSES; NAME=PASSES, e.g.
    tidy=dead_code_elimination,constant_fold. A TOML file may hold a table of them. Built in:
    default, inference and training."""

    max_rewrites: int = Field(default=256, ge=0)
    """Maximum number of (pattern, replacement) pairs of one request."""

    max_matches: int = Field(default=10_000, ge=1)
    """Maximum number of matches that replace_pattern may rewrite in one request."""

    max_match_steps: int = Field(default=200_000_000, ge=1)
    """Maximum number of steps of the pattern search of one replace_pattern: candidate nodes times
    pairs of pattern nodes. Computed before the search starts."""

    max_folded_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Maximum bytes of constants that constant folding may create in one request."""

    max_pass_seconds: float = Field(default=60.0, ge=0)
    """Seconds after which a pass is stopped and the request fails; 0 for no limit but
    job_timeout."""

    job_timeout: float = Field(default=120.0, gt=0)
    """Seconds after which a job is killed."""

    job_cpu_seconds: float = Field(default=600.0, gt=0)
    """CPU seconds, over all threads, after which a job is killed."""

    crash_refusal_seconds: float = Field(default=600.0, ge=0)
    """Seconds for which a graph is refused after two workers died on it; 0 never refuses it."""

    operator_modules: Names = Field(default=[])
    """Python modules that register custom operators; imported in the workers that run passes."""

    allow_targets: Path | None = None
    """JSON file of additional functions and Tensor methods that graphs may call, by exact name and
    signature; docs/deploy.md has an example. The modules that it names are imported."""

    native: Literal["off", "on", "optional"] = "off"
    """Compile native artifacts with Inductor for torch.compile(backend="lazyfx"). on (or --native
    alone) requires a C++ compiler and every sandbox layer, and refuses to start without them;
    optional starts without native artifacts instead."""

    native_unconfined: bool = False
    """Run native compiles without a complete sandbox, if the kernel lacks a layer or a GPU driver
    needs more than the sandbox allows. A caller whose graph gets past the checks then has the
    rights of this server's user: use it only if you trust every caller."""

    native_workers: int = Field(default=1, ge=1, le=64)
    """Native compiles to run in parallel, each in a process of its own that ends afterwards."""

    native_start_method: Literal["auto", "forkserver", "spawn"] = "auto"
    """Start method of native workers, as in multiprocessing. "forkserver" starts at once and
    cannot use GPUs; "spawn" takes seconds and can. "auto" selects "spawn" on machines with
    GPUs."""

    native_compile_threads: int = Field(default=1, ge=1, le=256)
    """C++ compilers that one native compile may run in parallel."""

    native_memory_bytes: ByteSize = Field(default=ByteSize(32 * GIB))
    """Address space that a native compile process may allocate beyond what it starts with."""

    native_cpu_seconds: float = Field(default=7200.0, gt=0)
    """CPU seconds after which a native compile process is killed."""

    native_timeout: float = Field(default=1800.0, gt=0)
    """Seconds after which a native compile is killed."""

    max_queue: int = Field(default=1024, ge=0)
    """Maximum number of jobs that wait for a worker; more are refused with RESOURCE_EXHAUSTED."""

    max_batch_in_flight: int = Field(default=64, ge=1)
    """Requests of one CompileBatch stream to process at the same time."""

    max_streams: int = Field(default=1000, ge=1)
    """Maximum number of concurrent calls per connection; more wait in the client."""

    max_metadata_bytes: ByteSize = Field(default=ByteSize(16 * 1024))
    """Maximum size of the metadata (headers) of a call."""

    max_call_seconds: float = Field(default=3600.0, gt=0)
    """Maximum duration of any call in seconds, even if its caller set no deadline."""

    max_refused_rate: int = Field(default=2**20, ge=0)
    """Bytes per second of malformed or oversized requests above which the server delays its answers
    to a connection, by at most 5 s. The first 64 MiB cause no delay; 0 for no delays at all."""

    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a chunk after which an upload is ended."""

    min_upload_rate: int = Field(default=1024, ge=0)
    """Minimum rate of an upload in bytes per second, measured after the first upload_idle_timeout
    seconds."""

    max_staged_bytes: ByteSize = Field(default=ByteSize(8 * GIB))
    """Maximum bytes of unfinished uploads of one tenant."""

    max_staged_bytes_in_all: ByteSize = Field(default=ByteSize(16 * GIB))
    """Maximum bytes of unfinished uploads of all tenants together."""

    stream_idle_timeout: float = Field(default=300.0, gt=0)
    """Seconds after which a batch stream without requests in flight is ended."""

    server_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """Name of this server in signed artifacts. Default: the host name."""

    signing_key: Path | None = None
    """File with the Ed25519 keys that sign artifacts (PEM; the first key signs); created if
    missing, reread when it changes. Default: .keys/signing.pem in the store's folder; without a
    store, a new key at each start."""

    signature_days: float = Field(default=30.0, gt=0)
    """Days for which the signature of an artifact is valid."""

    drain_seconds: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight may take to finish after SIGTERM."""

    reflection: bool = False
    """Enable gRPC server reflection."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity of the log lines to write."""

    log_format: Literal["text", "json"] = "text"
    """Format of log lines, which go to standard error."""

    @field_validator("store_path", mode="before")
    @classmethod
    def _empty_path_is_none(cls, value: object) -> object:
        return None if value == "" else value

    @field_validator("native", mode="before")
    @classmethod
    def _switch_is_word(cls, value: object) -> object:
        """It was a switch once, and still is where it stands alone."""
        word = str(value).strip().lower()
        if word in ("1", "true", "yes", "t", "y", ""):
            return "on" if word else "off"
        return "off" if word in ("0", "false", "no", "f", "n") else value

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError(f"takes HOST:PORT, e.g. 127.0.0.1:8700 or [::1]:8700, not {value!r}")
        if "/" in host or "@" in host:
            raise ValueError(f"takes HOST:PORT, not a URL: write {host.rpartition('/')[2]}:{port}")
        return value

    @model_validator(mode="after")
    def _tls_is_whole(self) -> Self:
        if (self.server_certificate is None) != (self.server_key is None):
            raise ValueError("--server-certificate and --server-key must be set together")
        if self.client_ca is not None and self.server_certificate is None:
            raise ValueError("--client-ca requires --server-certificate and --server-key")
        return self

    @property
    def exposure(self) -> str | None:
        """Why the listen address is not safe to serve on, or None when it is."""
        if self.listens_on_loopback:
            return None
        if self.server_certificate is None:
            return "traffic is not encrypted (--server-certificate, --server-key)"
        if self.tokens is None and self.client_ca is None:
            return "callers are not identified (--tokens or --client-ca)"
        return None

    @property
    def tenant_secret_file(self) -> Path | None:
        """Where the tenants' secret is kept; None when in memory only."""
        if self.tenant_secret is None and self.store_path is not None:
            return self.store_path / ".keys" / "tenants.key"
        return self.tenant_secret

    @property
    def signing_key_file(self) -> Path | None:
        """Where the signing key is kept; None when in memory only."""
        if self.signing_key is None and self.store_path is not None:
            return self.store_path / ".keys" / "signing.pem"
        return self.signing_key

    @field_validator("pipelines", mode="before")
    @classmethod
    def _table_is_text(cls, value: object) -> object:
        if isinstance(value, dict):
            return "; ".join(f"{name}={spelling}" for name, spelling in value.items())
        return value

    @field_validator("pipelines")
    @classmethod
    def _names_pipelines(cls, value: str) -> str:
        for entry in filter(None, map(str.strip, value.split(";"))):
            name, equals, passes = entry.partition("=")
            if not (name.strip().isidentifier() and equals and passes.strip()):
                raise ValueError(
                    f"takes NAME=PASSES; NAME=PASSES, and {entry!r} is not NAME=PASSES"
                )
        return value

    @property
    def named_pipelines(self) -> dict[str, str]:
        """The spelling of each pipeline by its name."""
        entries = (entry.partition("=") for entry in self.pipelines.split(";") if entry.strip())
        return {name.strip(): spelling.strip() for name, _, spelling in entries}

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        return is_loopback(self.listen)
