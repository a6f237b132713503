"""`lazyfx serve`: argv -> settings -> app."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

from lazyfx.errors import LazyfxError
from lazyfx.shared.environment import CLIENT_VARIABLES, misspelled
from lazyfx_server.file_limit import raise_limit
from lazyfx_server.folder_lock import FolderInUseError, FolderLock
from lazyfx_server.memory_allocator import give_back_large_blocks
from lazyfx_server.operator_checks import SetupError, check_setup
from lazyfx_server.settings.loading import flags, load, refuse
from lazyfx_server.settings.model import FIELDS, Settings
from lazyfx_server.settings.service_settings import LogSettings
from lazyfx_server.telemetry.plain_text import (
    PlainStream,
    log_to,
    reformat_torch_loggers,
)
from lazyfx_server.workers.starting import worker_start

__all__ = ["flags", "main"]

_SWITCH_SECONDS = 0.0005
# What a server takes to end after it has drained.
_END_SECONDS = 5.0


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a server until a signal stops it.

    Args:
        arguments: Command-line flags; `sys.argv` by default.

    Raises:
        SystemExit: A setting is invalid, an address cannot be bound, or the server was interrupted.
    """
    try:
        _main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        # Only during startup; a running server drains instead.
        raise SystemExit(130) from None


def _main(arguments: Sequence[str]) -> None:
    settings = load(arguments)
    try:
        check_setup(settings)
    except SetupError as error:
        refuse(str(error))
    _log_to_stderr(settings.logs)
    log = logging.getLogger("lazyfx_server")
    log.info("starting lazyfx %s on %s", version("lazyfx"), settings.addresses.listen)
    for sentence in misspelled(CLIENT_VARIABLES | {name.upper() for name in FIELDS}):
        log.warning(sentence)
    # A successor waits for it as late as possible, when it has imported what it needs.
    takes_over = settings.addresses.takeover_seconds > 0
    folder_lock = None if takes_over else _lock_folder(settings)
    raise_limit()
    give_back_large_blocks()
    # While a thread parses a large request, the event loop waits at most this long for the GIL.
    sys.setswitchinterval(_SWITCH_SECONDS)
    _serve(settings, folder_lock)


def _serve(settings: Settings, folder_lock: FolderLock | None) -> None:
    """Run the server until a signal stops it, then release the lock.

    Args:
        settings: All settings.
        folder_lock: The lock of the store folder; None if it is taken when a predecessor has
            released it, or if there is no folder.
    """
    # Workers must be forked from a process that has never used gRPC, whose threads do
    # not survive a fork; so the fork server comes first and everything else after it.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    from lazyfx_server.execution import ExecutionError, ForkServer, SpawnSource
    from lazyfx_server.store import StoreError

    added_targets = ""
    if settings.passes.allow_targets is not None:
        added_targets = _user_targets(settings.passes.allow_targets)
    start = worker_start(
        settings.workers, settings.native, settings.passes.operator_modules, added_targets,
        settings.logs.log_format,
    )  # fmt: skip
    forkserver = ForkServer(start.fork_preload, start.without_gpus)
    if settings.workers.ray_address is None or settings.workers.executor_fallback:
        forkserver.start()
    from lazyfx_server.app import App
    from lazyfx_server.lifecycle import stop_signals, when_free
    from lazyfx_server.workers.pools import Sources

    reformat_torch_loggers()

    sources = Sources(forkserver, SpawnSource(start.preload, start.environment))

    async def serve() -> None:
        nonlocal folder_lock
        addresses = settings.addresses
        if addresses.takeover_seconds > 0:
            host, _, port = addresses.listen.rpartition(":")
            # Before the store is opened, which the other server still writes to.
            await when_free(host.strip("[]"), int(port), addresses.takeover_seconds)
            folder_lock = _lock_folder(settings)
        await App(settings, sources, added_targets).run(stop_signals(), _ready)

    try:
        _run(serve)
    except (OSError, LazyfxError, ValueError, StoreError, ExecutionError) as error:
        raise SystemExit(f"lazyfx serve: {error}") from error
    finally:
        # It may still be importing, and this process would wait for it before exiting.
        forkserver.kill()
        if folder_lock is not None:
            folder_lock.release()


def _lock_folder(settings: Settings) -> FolderLock | None:
    """Lock the store folder, after a predecessor of this server has drained."""
    store = settings.store
    if store.store_path is None:
        return None
    wait_seconds = settings.stopping.drain_seconds + _END_SECONDS
    try:
        return FolderLock(
            store.store_path, is_shared=store.store is not None, wait_seconds=wait_seconds
        )
    except FolderInUseError as error:
        refuse(f"--store-path: {error}")


def _user_targets(path: Path) -> str:
    """Allow the targets of a file here; return its text, for workers."""
    from lazyfx.shared.wire.targets.user_targets import parse
    from lazyfx_server.security import allowed

    try:
        text = path.read_text("utf-8")
        allowed.allow_user_targets(parse(text))
    except (OSError, ValueError) as error:
        refuse(f"--allow-targets {path}: {error}")
    return text


def _run(serve: Callable[[], object]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(serve())  # type: ignore[arg-type]
    else:
        uvloop.run(serve())  # type: ignore[arg-type]


def _ready(address: str, metrics_url: str) -> None:
    # Objects created so far live until the end. A garbage collection over them would stall every
    # request for 0.1 s, repeatedly.
    gc.collect()
    gc.freeze()
    logging.getLogger("lazyfx_server").info("serving on %s, metrics on %s", address, metrics_url)


def _log_to_stderr(settings: LogSettings) -> None:
    sys.stderr = PlainStream(sys.stderr)
    log_to(sys.stderr, settings.log_level, settings.log_format)


if __name__ == "__main__":
    main()
