"""Quick checks for configuration errors, before torch is imported and workers start."""

from __future__ import annotations

import errno
import importlib.util
import os
import shutil
import socket
import ssl
import tempfile
from collections.abc import Callable, Sequence
from importlib.machinery import PathFinder
from importlib.metadata import entry_points
from pathlib import Path

from lazyfx.shared.pass_spelling import PLUGIN_GROUP
from lazyfx.shared.suggesting import did_you_mean
from lazyfx_server.security.bearer_tokens import TokenFile, TokenFileError
from lazyfx_server.security.secret_file import SecretFileError, secret_of
from lazyfx_server.security.signing import read_keys
from lazyfx_server.settings.model import Settings
from lazyfx_server.settings.service_settings import CallerSettings
from lazyfx_server.settings.upstream_settings import SYSTEM
from lazyfx_server.store.opening_shared import SharedStoreError, open_remote
from lazyfx_server.upstream.own_token import read_token
from lazyfx_server.upstream.upstream_tls import check_pair


class SetupError(Exception):
    """The server cannot run with this configuration; names the flag and the reason."""


def check_setup(settings: Settings) -> None:
    """Check the addresses, files and folders in the settings.

    Raises:
        SetupError: One of them cannot be used.
    """
    addresses, callers, passes = settings.addresses, settings.callers, settings.passes
    host, _, port = addresses.listen.rpartition(":")
    waits = addresses.takeover_seconds > 0
    _check_address(f"--listen {addresses.listen}", host.strip("[]"), int(port), waits=waits)
    flag = f"--metrics-host {addresses.metrics_host} --metrics-port {addresses.metrics_port}"
    _check_address(flag, addresses.metrics_host, addresses.metrics_port, waits=waits)
    if settings.store.store_path is not None:
        _check_folder(settings.store.store_path)
    _check_shared_store(settings)
    for name in ("server_certificate", "server_key", "client_ca", "tokens"):
        if (path := getattr(callers, name)) is not None:
            _check_file(_flag(name), path)
    if passes.allow_targets is not None:
        _check_file("--allow-targets", passes.allow_targets)
    ray = settings.workers.ray_address
    if ray is not None and importlib.util.find_spec("ray") is None:
        raise SetupError(
            f"--executor {settings.workers.executor}: Ray is not installed; install lazyfx[ray]"
        )
    if settings.native.native == "on" and ray is None:
        _check_compiler(os.environ.get("CXX") or "g++")
    _check_certificates(callers)
    _check_upstream(settings)
    _check_secrets(settings)
    _check_plugins(passes.pass_plugins)
    for name in passes.operator_modules:
        if not _is_module(name):
            raise SetupError(f"--operator-modules {name}: there is no such module")


def _check_compiler(name: str) -> None:
    """Only look for the program; whether it works is checked when workers start."""
    if shutil.which(name) is None:
        raise SetupError(
            f"--native: there is no C++ compiler {name!r} here; install g++, or set CXX to one"
        )


def _check_upstream(settings: Settings) -> None:
    """Read the files that the connection to the upstream needs; it need not be there yet."""
    ca, token = settings.upstream.upstream_ca, settings.upstream.upstream_token
    if ca is not None and ca != SYSTEM:
        _check_file("--upstream-ca", ca)
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(ca)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"--upstream-ca {ca}: contains no PEM certificates: {_reason(error)}"
            ) from error
    certificate, key = settings.upstream.upstream_certificate, settings.upstream.upstream_key
    if certificate is not None and key is not None:
        _check_file("--upstream-certificate", certificate)
        _check_file("--upstream-key", key)
        try:
            check_pair(certificate, key)
        except OSError as error:
            raise SetupError(
                f"--upstream-certificate {certificate} --upstream-key {key}: not a PEM certificate "
                f"chain and its private key: {_reason(error)}"
            ) from error
    if token is not None:
        try:
            read_token(token)
        except OSError as error:
            raise SetupError(f"--upstream-token: {error}") from error


def _check_secrets(settings: Settings) -> None:
    """Read the files of tokens and keys like the server, which creates missing ones."""
    tokens = settings.callers.tokens
    readers: list[tuple[str, Path | None, Callable[[Path], object]]] = [
        ("tokens", tokens, TokenFile),
        ("signing_key", settings.signing.signing_key, read_keys),
        ("tenant_secret", settings.callers.tenant_secret, secret_of),
    ]
    for name, path, read in readers:
        if path is None:
            continue
        try:
            if name != "signing_key" or path.exists():
                read(path)
        except (TokenFileError, SecretFileError) as error:
            named = "" if str(path) in str(error) else f" {path}"
            raise SetupError(f"{_flag(name)}{named}: {error}") from error
        except OSError as error:
            raise SetupError(f"{_flag(name)} {path}: {error.strerror}") from error
    if tokens is not None and not tokens.stat().st_size:
        raise SetupError(
            f"--tokens {tokens}: is empty, so no caller would be accepted; "
            f"`lazyfx token TENANT --file {tokens}` adds a token"
        )


def _check_plugins(names: Sequence[str]) -> None:
    offered = {entry.name for entry in entry_points(group=PLUGIN_GROUP)}
    for name in names:
        if name not in offered:
            what = did_you_mean(name, sorted(offered)) if offered else "; none is installed"
            raise SetupError(
                f"--pass-plugins {name}: no installed package provides passes of this name "
                f"(entry points of the group {PLUGIN_GROUP}){what}"
            )


def _is_module(name: str) -> bool:
    """Whether there is such a module; its parent packages are not imported here."""
    top, *inner = name.split(".")
    try:
        found = importlib.util.find_spec(top)
    except (ImportError, ValueError):
        return False
    for place in range(len(inner)):
        if found is None or found.submodule_search_locations is None:
            return False
        path = list(found.submodule_search_locations)
        found = PathFinder.find_spec(".".join([top, *inner[: place + 1]]), path)
    return found is not None


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_address(flag: str, host: str, port: int, *, waits: bool) -> None:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise SetupError(f"{flag}: {host} is not a known host: {_reason(error)}") from error
    for family, kind, protocol, _, address in found:
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
                # Two sockets may be bound to the same address, but only one of them may listen.
                probe.listen(1)
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
            if waits and error.errno == errno.EADDRINUSE:
                continue  # the server will wait for it
            hint = ""
            if error.errno == errno.EADDRINUSE:
                hint = "; stop what listens there, or choose another port (0 picks a free one)"
            raise SetupError(f"{flag}: cannot listen there: {_reason(error)}{hint}") from error


def _check_folder(folder: Path) -> None:
    flag = f"--store-path {folder}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileExistsError as error:
        raise SetupError(f"{flag}: is not a folder") from error
    except OSError as error:
        raise SetupError(f"{flag}: cannot be used as a store: {_reason(error)}") from error


def _check_shared_store(settings: Settings) -> None:
    """Look at the URLs and secrets; whether the stores answer is asked when the server starts."""
    if settings.store.store is None:
        return
    for name in ("store", "blobs"):
        if (url := getattr(settings.store, name)) is not None:
            try:
                open_remote(url, ttl_seconds=1)
            except SharedStoreError as error:
                raise SetupError(f"{_flag(name)}: {error}") from error
    for name, path in (
        ("tenant_secret", settings.tenant_secret_file),
        ("signing_key", settings.signing_key_file),
    ):
        if path is None:
            raise SetupError(
                f"--store requires {_flag(name)}, or a --store-path to keep it in: servers that "
                "share a store must share it"
            )


def _check_file(flag: str, path: Path) -> None:
    try:
        if not path.is_file() and path.exists():
            raise SetupError(f"{flag} {path}: is not a file")
        with path.open("rb"):
            pass
    except OSError as error:
        raise SetupError(f"{flag} {path}: {_reason(error)}") from error


def _check_certificates(settings: CallerSettings) -> None:
    certificate, key = settings.server_certificate, settings.server_key
    if certificate is None or key is None:
        return
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(certificate, key, password=b"")
    except (OSError, ValueError) as error:
        raise SetupError(
            f"--server-certificate {certificate} --server-key {key}: not a PEM certificate chain "
            f"and its private key: {_reason(error)}"
        ) from error
    if settings.client_ca is not None:
        try:
            context.load_verify_locations(settings.client_ca)
        except (OSError, ValueError) as error:
            raise SetupError(
                f"--client-ca {settings.client_ca}: contains no PEM certificates: {_reason(error)}"
            ) from error


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return error.reason or "unreadable"
    if isinstance(error, OSError) and error.errno:
        return os.strerror(error.errno) if error.errno > 0 else str(error.strerror)
    return str(error)
