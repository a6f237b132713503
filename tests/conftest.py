"""A real server on a free loopback port, and clients of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import file_order
import nursery
import pytest
import shared_headers
from servers import RunningServer, start_server

import lazyfx

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# The tests ignore the trusted servers of the user who runs them.
os.environ["LAZYFX_KNOWN_SERVERS"] = os.devnull
# Jobs of a shell in the background ignore Ctrl-C, and all that they start does too; some tests
# press it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> None:
    """With `-n`, keep the tests of a file in one process, because they share servers."""
    if getattr(config.option, "numprocesses", None) and config.option.dist == "no":
        config.option.dist = "loadfile"
        config.option.loadscopereorder = False  # see `pytest_collection_modifyitems`


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """As `--dist loadfile`, but for the files that `file_order` keeps together."""
    if config.option.dist != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class ByUnits(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return file_order.unit(nodeid)

    return ByUnits(config, log)


def pytest_configure(config: pytest.Config) -> None:
    if not hasattr(config, "workerinput"):
        run = contextlib.ExitStack()
        run.enter_context(nursery.nurseries())
        run.enter_context(shared_headers.shared_headers())
        config.add_cleanup(run.close)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Skip files without long tests in `make test-long`, which then does not import them."""
    if collection_path.suffix != ".py" or not config.option.markexpr.startswith("long"):
        return None
    text = collection_path.read_text("utf-8")
    return None if "mark.long" in text or "native_server" in text else True


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> Iterator[None]:
    for item in items:
        # Each of them runs Inductor and a C++ compiler.
        if "native_server" in getattr(item, "fixturenames", ()):
            item.add_marker("long")
    yield
    if hasattr(config, "workerinput"):
        tests = Counter(file_order.unit(item.nodeid) for item in items)
        seconds = {unit: file_order.seconds(unit) for unit in tests}

        def order(item: pytest.Item) -> tuple[int, int, str, Path]:
            unit = file_order.unit(item.nodeid)
            return -seconds[unit], -tests[unit], unit, item.path

        items.sort(key=order)


@pytest.fixture(autouse=True)
def subnormal_numbers() -> Iterator[None]:
    """Keep them, also after a test that loads Inductor's kernels: some turn them off when loaded."""
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_flush_denormal(False)


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., RunningServer]]:
    """Starts servers with flags of the test's own; they are stopped at its end."""
    servers: list[RunningServer] = []

    def start(*flags: str, store: Path | None = None, **kwargs: Any) -> RunningServer:
        server = start_server(store or tmp_path / "store", *flags, **kwargs)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """One server for the tests of a file, with a store of its own."""
    running = start_server(tmp_path_factory.mktemp("store"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def launch_for_file(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., RunningServer]]:
    """As `launch`, for servers that the tests of a file share."""
    servers: list[RunningServer] = []

    def start(*flags: str, store: Path | None = None, **kwargs: Any) -> RunningServer:
        server = start_server(store or tmp_path_factory.mktemp("store"), *flags, **kwargs)
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def named_host() -> str:
    """A name of this machine that does not reveal that it is local until it is resolved."""
    for name in (socket.gethostname(), "ip4-loopback", "lazyfx.localhost"):
        try:
            if name != "localhost" and socket.gethostbyname(name).startswith("127."):
                return name
        except OSError:
            continue
    pytest.skip("no name but localhost resolves to 127.0.0.1 here")


@pytest.fixture
def client(server: RunningServer) -> Iterator[lazyfx.Client]:
    """A blocking client of the file's server."""
    with lazyfx.connect(server.address) as connected:
        yield connected
