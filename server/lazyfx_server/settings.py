"""What can be set about a server, with the defaults; `config` reads it."""

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

from lazyfx.addresses import is_loopback

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
    """TOML file to read settings from; the keys are the names of these flags with underscores."""

    listen: str = "127.0.0.1:8700"
    """Address of the gRPC service, HOST:PORT; port 0 picks a free one. An address that other
    machines can reach needs TLS and a way to identify callers, or --insecure."""

    insecure: bool = False
    """Allow an address that other machines can reach without TLS, or without identifying
    callers. Then whoever reaches the port can compile, read results by their keys, and listen
    in: for networks that are closed in other ways."""

    server_certificate: Path | None = None
    """PEM file of this server's certificate chain; turns TLS on. Read again when it changes."""

    server_key: Path | None = None
    """PEM file of the private key of --server-certificate."""

    client_ca: Path | None = None
    """PEM file of the authorities whose certificates callers must show (mTLS). Without --tokens
    the common name is the tenant."""

    client_names: Names = Field(default=[])
    """Common names of certificates that are served. Default: all that --client-ca vouches for."""

    tokens: Path | None = None
    """File of the tokens that callers may show; `lazyfx token` adds to it. Read again when it
    changes."""

    tenant_secret: Path | None = None
    """File of the secret that keeps tenants' keys apart; made when it is not there. Servers that
    share a store share it. Default: .keys/tenants.key in the store's folder."""

    quota_requests: int | None = Field(default=None, ge=1)
    """Requests that one tenant may make in a minute; each of a batch counts. Default: no quota."""

    quota_bytes: ByteSize | None = None
    """Bytes that one tenant may send in an hour. Default: no quota."""

    quota_compile_seconds: float | None = Field(default=None, gt=0)
    """Seconds of work in workers that one tenant may use in an hour. Default: no quota."""

    metrics_host: str = "127.0.0.1"
    """Host for /metrics, /healthz and /readyz."""

    metrics_port: int = Field(default=8701, ge=0, le=65535)
    """Port for /metrics, /healthz and /readyz; 0 picks a free one."""

    workers: int = Field(default=_default_workers(), ge=1, le=256)
    """Worker processes that run passes and render artifacts. Default: one less than the CPUs,
    at least 1, at most 8."""

    worker_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads that torch uses in each worker."""

    worker_memory_bytes: ByteSize = Field(default=ByteSize(8 * GIB))
    """Address space that a worker may take beyond what it starts with."""

    sandbox: Literal["auto", "required", "off"] = "auto"
    """Confinement of the workers that run passes. auto: all that the kernel has, and a warning
    where it lacks something; required: do not start without all of it; off: none."""

    worker_max_jobs: int = Field(default=1000, ge=1)
    """Jobs after which a worker process is replaced (generated source is never freed by Python)."""

    store_path: Path | None = Field(default=_default_store())
    """Folder of the disk store; it survives restarts. An empty value keeps everything in
    memory. Default: $XDG_CACHE_HOME/lazyfx or ~/.cache/lazyfx."""

    store_memory_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Bound of the memory store; e.g. 256MiB."""

    store_disk_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Bound of the disk store; least recently used entries leave first."""

    max_message_bytes: ByteSize = Field(default=ByteSize(4 * MIB))
    """Largest gRPC message taken. gRPC copies a message on the event loop, 2 ms for each MiB, and
    calls of others wait meanwhile. Graphs and tensors that are larger come in chunks."""

    max_held_bytes: ByteSize = Field(default=ByteSize(512 * MIB))
    """Bytes of requests that are held at a time, whether they wait or are worked on; more are
    refused with RESOURCE_EXHAUSTED. Small ones are not counted."""

    max_held_bytes_per_tenant: ByteSize = Field(default=ByteSize(256 * MIB))
    """The same of one tenant. On a server that identifies nobody all callers are one tenant."""

    max_graph_bytes: ByteSize = Field(default=ByteSize(32 * MIB))
    """Largest graph body taken."""

    max_presentation_bytes: ByteSize = Field(default=ByteSize(16 * MIB))
    """Most bytes of the names that go with a graph."""

    max_blob_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Largest tensor taken by UploadBlobs."""

    max_nodes: int = Field(default=200_000, ge=1)
    """Most nodes of a graph, nested graphs included."""

    max_edges: int = Field(default=2_000_000, ge=1)
    """Most uses of nodes by other nodes in a graph, nested graphs included."""

    max_calls: int = Field(default=200_000, ge=1)
    """Most distinct calls (target and literal arguments) of a graph."""

    max_arguments: int = Field(default=100_000, ge=1)
    """Most arguments of one call, those inside lists and dicts included."""

    max_string_bytes: ByteSize = Field(default=ByteSize(MIB))
    """Longest string in a graph, in characters."""

    max_rank: int = Field(default=64, ge=0, le=64)
    """Most dimensions of a tensor."""

    max_elements: int = Field(default=2**48, ge=1)
    """Most elements of a described tensor; its values need not exist anywhere."""

    max_outputs: int = Field(default=10_000, ge=1)
    """Most outputs of one node."""

    max_source_bytes: ByteSize = Field(default=ByteSize(128 * MIB))
    """Longest Python source that a graph may mean, its names and literals written out at each
    use, as estimated before it is generated."""

    max_passes: int = Field(default=64, ge=0)
    """Most passes of one request."""

    max_option_bytes: ByteSize = Field(default=ByteSize(64 * 1024))
    """Longest value of an option of a pass, a list's items together."""

    max_values: int = Field(default=16_384, ge=0)
    """Most tensors whose values one request may bind."""

    max_digests: int = Field(default=1024, ge=1)
    """Most blobs that one FindMissingBlobs may ask for."""

    pass_plugins: Names = Field(default=[])
    """Names of entry points of the group lazyfx.passes to load. A plugin is code that runs in the
    server and its workers: nothing is loaded that is not named here."""

    pipelines: str = ""
    """Pipelines by name, beside default, inference and training: NAME=PASSES; NAME=PASSES,
    e.g. tidy=dead_code_elimination,constant_fold. A TOML file may have a table of them."""

    max_rewrites: int = Field(default=256, ge=0)
    """Most pattern and replacement pairs of one request."""

    max_matches: int = Field(default=10_000, ge=1)
    """Most matches that replace_pattern may rewrite in one request."""

    max_match_steps: int = Field(default=200_000_000, ge=1)
    """Steps that looking for the patterns of one replace_pattern may take: places where a
    pattern may end, times the pairs of nodes of the pattern. Known before the search begins."""

    max_folded_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Most bytes of constants that constant folding may make in one request."""

    max_pass_seconds: float = Field(default=60.0, ge=0)
    """Seconds that one pass may take before it is stopped and named; 0 for no bound but
    job_timeout."""

    job_timeout: float = Field(default=120.0, gt=0)
    """Seconds that one job may take in a worker before it is killed."""

    job_cpu_seconds: float = Field(default=600.0, gt=0)
    """Processor seconds that one job may use, on all its threads, before it is killed."""

    crash_refusal_seconds: float = Field(default=600.0, ge=0)
    """Seconds for which a graph is refused after two workers have died on it; 0 for not at all."""

    operator_modules: Names = Field(default=[])
    """Python modules that register custom operators, imported where passes run."""

    allow_targets: Path | None = None
    """JSON file of further functions and Tensor methods that graphs may call, by exact name with
    what they take; docs/deploy.md shows one. The modules that it names are imported."""

    native: Literal["off", "on", "optional"] = "off"
    """Make native artifacts with Inductor for torch.compile(backend="lazyfx"): on, or --native
    alone, needs a C++ compiler and all layers of confinement, and does not start without;
    optional starts without native artifacts then, and says so."""

    native_unconfined: bool = False
    """Run native compiles unconfined, where the kernel lacks a layer or a GPU's driver needs more
    than confinement allows. Then a caller whose graph gets past the checks has the rights of this
    server's user: for callers that you trust."""

    native_workers: int = Field(default=1, ge=1, le=64)
    """Native compiles that run at a time, each in a process that ends afterwards."""

    native_start_method: Literal["auto", "forkserver", "spawn"] = "auto"
    """How native workers begin, in the words of Python's multiprocessing. "forkserver" is ready at
    once and cannot use GPUs; "spawn" takes seconds and can, and "auto" takes it where there are."""

    native_compile_threads: int = Field(default=1, ge=1, le=256)
    """C++ compilers that one native compile may run at a time."""

    native_memory_bytes: ByteSize = Field(default=ByteSize(32 * GIB))
    """Address space that a process of a native compile may take beyond what it starts with."""

    native_cpu_seconds: float = Field(default=7200.0, gt=0)
    """Processor seconds that a process of a native compile may use before it is killed."""

    native_timeout: float = Field(default=1800.0, gt=0)
    """Seconds that one native compile may take before it is killed."""

    max_queue: int = Field(default=1024, ge=0)
    """Jobs that may wait for a worker; more are refused with RESOURCE_EXHAUSTED."""

    max_batch_in_flight: int = Field(default=64, ge=1)
    """Requests of one CompileBatch stream that are worked on at a time."""

    max_streams: int = Field(default=1000, ge=1)
    """Calls that one connection may have under way; more wait on the client's side."""

    max_metadata_bytes: ByteSize = Field(default=ByteSize(16 * 1024))
    """Most bytes of metadata (headers) of a call."""

    max_call_seconds: float = Field(default=3600.0, gt=0)
    """Seconds that any call may take, also one whose caller set no deadline."""

    max_refused_rate: int = Field(default=2 * 2**20, ge=0)
    """Bytes a second that one connection may have refused as malformed or over a bound before it is
    answered later, by 2 s at most. The first 64 MiB are free; 0 for no delays."""

    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a chunk after which an upload is ended."""

    min_upload_rate: int = Field(default=1024, ge=0)
    """Bytes a second that an upload must reach, from its first upload_idle_timeout seconds on."""

    max_staged_bytes: ByteSize = Field(default=ByteSize(8 * GIB))
    """Bytes of unfinished uploads that one tenant may have."""

    max_staged_bytes_in_all: ByteSize = Field(default=ByteSize(16 * GIB))
    """Bytes of unfinished uploads of all tenants together."""

    stream_idle_timeout: float = Field(default=300.0, gt=0)
    """Seconds that a batch with nothing under way may say nothing before it is ended."""

    server_name: str = Field(default_factory=socket.gethostname, min_length=1, max_length=200)
    """What signed artifacts call this server. Default: the name of the machine."""

    signing_key: Path | None = None
    """File of the Ed25519 keys that artifacts are signed with (PEM, the first one signs, read
    again when it changes); made when it is not there. Default: .keys/signing.pem in the store's
    folder; without a store, a new key at each start."""

    signature_days: float = Field(default=30.0, gt=0)
    """Days for which the signature of an artifact holds."""

    drain_seconds: float = Field(default=30.0, ge=0)
    """Seconds that requests in flight get to finish after SIGTERM."""

    reflection: bool = False
    """Offer gRPC server reflection."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log lines written."""

    log_format: Literal["text", "json"] = "text"
    """Form of log lines, written to standard error."""

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
            raise ValueError("--server-certificate and --server-key go together")
        if self.client_ca is not None and self.server_certificate is None:
            raise ValueError("--client-ca needs --server-certificate and --server-key: mTLS is TLS")
        return self

    @property
    def exposure(self) -> str | None:
        """Why the listen address is not safe to serve on, or None when it is."""
        if self.listens_on_loopback:
            return None
        if self.server_certificate is None:
            return "nothing encrypts what is sent (--server-certificate, --server-key)"
        if self.tokens is None and self.client_ca is None:
            return "nothing identifies callers (--tokens or --client-ca)"
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
