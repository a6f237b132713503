"""Settings of the server: the only reader of flags, environment and files.

Precedence: command line, then environment (``LAZYFX_*``), then the TOML file named by
``--config`` or ``LAZYFX_CONFIG``, then the defaults below.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import ByteSize, Field, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    CliSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)

MIB = 2**20
GIB = 2**30


def _default_workers() -> int:
    return max(1, min(8, (os.cpu_count() or 2) - 1))


def _default_store() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "lazyfx"


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
    """Address of the gRPC service, HOST:PORT; port 0 picks a free one. Addresses that other
    machines can reach need --insecure."""

    insecure: bool = False
    """Allow a listen address that other machines can reach. Nothing identifies callers yet:
    whoever reaches the port can compile."""

    metrics_host: str = "127.0.0.1"
    """Host for /metrics, /healthz and /readyz."""

    metrics_port: int = Field(default=8701, ge=0, le=65535)
    """Port for /metrics, /healthz and /readyz; 0 picks a free one."""

    workers: int = Field(default=_default_workers(), ge=1, le=256)
    """Worker processes that run passes and render artifacts. Default: one less than the CPUs,
    at least 1, at most 8."""

    worker_threads: int = Field(default=1, ge=1, le=256)
    """CPU threads that torch uses in each worker."""

    worker_max_jobs: int = Field(default=1000, ge=1)
    """Jobs after which a worker process is replaced (generated source is never freed by Python)."""

    store_path: Path | None = Field(default=_default_store())
    """Folder of the disk store; it survives restarts. An empty value keeps everything in
    memory. Default: $XDG_CACHE_HOME/lazyfx or ~/.cache/lazyfx."""

    store_memory_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Bound of the memory store; e.g. 256MiB."""

    store_disk_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Bound of the disk store; least recently used entries leave first."""

    max_message_bytes: ByteSize = Field(default=ByteSize(64 * MIB))
    """Largest gRPC message taken or sent."""

    max_graph_bytes: ByteSize = Field(default=ByteSize(32 * MIB))
    """Largest graph body taken."""

    max_blob_bytes: ByteSize = Field(default=ByteSize(4 * GIB))
    """Largest tensor taken by UploadBlobs."""

    max_nodes: int = Field(default=200_000, ge=1)
    """Most nodes of a graph, nested graphs included."""

    max_passes: int = Field(default=64, ge=0)
    """Most passes of one request."""

    max_rewrites: int = Field(default=256, ge=0)
    """Most pattern and replacement pairs of one request."""

    max_matches: int = Field(default=10_000, ge=1)
    """Most matches that replace_pattern may rewrite in one request."""

    max_folded_bytes: ByteSize = Field(default=ByteSize(256 * MIB))
    """Most bytes of constants that constant folding may make in one request."""

    max_pass_seconds: float = Field(default=60.0, ge=0)
    """Seconds that one pass may take before it is stopped and named; 0 for no bound but
    job_timeout."""

    job_timeout: float = Field(default=120.0, gt=0)
    """Seconds that one job may take in a worker before it is killed."""

    native: bool = False
    """Make native artifacts with Inductor for torch.compile(backend="lazyfx"). Needs a C++
    compiler. Its workers cannot be confined as those that run passes are: turn it on for
    clients that you trust to use this machine's compilers."""

    native_workers: int = Field(default=1, ge=1, le=64)
    """Native compiles that run at a time, each in a process that ends afterwards."""

    native_compile_threads: int = Field(default=1, ge=1, le=256)
    """C++ compilers that one native compile may run at a time."""

    native_timeout: float = Field(default=1800.0, gt=0)
    """Seconds that one native compile may take before it is killed."""

    max_queue: int = Field(default=1024, ge=0)
    """Jobs that may wait for a worker; more are refused with RESOURCE_EXHAUSTED."""

    max_batch_in_flight: int = Field(default=64, ge=1)
    """Requests of one CompileBatch stream that are worked on at a time."""

    upload_idle_timeout: float = Field(default=30.0, gt=0)
    """Seconds without a chunk after which an upload is ended."""

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

    @field_validator("listen")
    @classmethod
    def _is_address(cls, value: str) -> str:
        host, separator, port = value.rpartition(":")
        if not separator or not host or not port.isdecimal() or int(port) > 65535:
            raise ValueError("must be HOST:PORT, e.g. 127.0.0.1:8700 or [::1]:8700")
        return value

    @property
    def signing_key_file(self) -> Path | None:
        """Where the signing key is kept; None when in memory only."""
        if self.signing_key is None and self.store_path is not None:
            return self.store_path / ".keys" / "signing.pem"
        return self.signing_key

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine can reach the service."""
        host = self.listen.rpartition(":")[0].strip("[]")
        if host == "localhost":
            return True
        try:
            return ipaddress.ip_address(host).is_loopback
        except ValueError:
            return False


def _settings_with_file(path: Path | None) -> type[Settings]:
    """Settings that also read a TOML file, below the environment."""

    class FileSettings(Settings):
        __doc__ = Settings.__doc__

        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings
            if path is None:
                return init_settings, env_settings
            return init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path)

    return FileSettings


def _config_file(arguments: Sequence[str]) -> Path | None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--config", default=os.environ.get("LAZYFX_CONFIG"))
    named = parser.parse_known_args(list(arguments))[0].config
    if named and not Path(named).is_file():
        _refuse(f"--config {named}: no such file")
    return Path(named) if named else None


def _refuse(reason: str) -> NoReturn:
    sys.stderr.write(f"lazyfx serve: {reason}\n")
    raise SystemExit(2)


def load(arguments: Sequence[str]) -> Settings:
    """Read the settings.

    Args:
        arguments: Command-line flags, without the program's name.

    Raises:
        SystemExit: With status 2 and the reason on standard error when a setting is
            wrong, with status 0 after --help.
    """
    schema = _settings_with_file(_config_file(arguments))
    flags = CliSettingsSource[object](
        schema, cli_prog_name="lazyfx serve", cli_parse_args=list(arguments)
    )
    try:
        settings = schema(_cli_settings_source=flags)  # type: ignore[call-arg]
    except ValidationError as error:
        lines = [
            f"  --{'.'.join(map(str, e['loc'])).replace('_', '-')}: {e['msg']}"
            for e in error.errors()
        ]
        _refuse("wrong settings\n" + "\n".join(lines))
    if not settings.listens_on_loopback and not settings.insecure:
        _refuse(
            f"--listen {settings.listen} can be reached from other machines and "
            "nothing identifies callers; listen on 127.0.0.1 behind a proxy that does, "
            "or pass --insecure if the network itself is trusted"
        )
    return settings
