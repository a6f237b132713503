"""A disk that is really full: told once, counted, and told once more when it has room again."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from lazyfx_server.compiling.ledger_file import LedgerFile
from lazyfx_server.store import TieredStore, open_store
from lazyfx_server.telemetry.outages import COUNT_SECONDS, QUIET_SECONDS, Outages


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one mebibyte."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m,mode=700", "lazyfx-test", str(place)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a file system takes root")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT)
    room = os.statvfs(path)
    for _ in range(room.f_bavail * room.f_frsize // 4096):
        os.write(file, bytes(4096))
    with pytest.raises(OSError, match="No space"):
        os.write(file, bytes(4096))
    os.close(file)


def key(number: int) -> str:
    return f"blobs/{number:064x}"


async def put(store: object, number: int, size: int) -> None:
    assert isinstance(store, TieredStore)
    await store.put(key(number), bytes(size))
    while store._pending:
        await asyncio.wait({task for _, task in store._pending.values()})


async def test_a_full_disk_is_told_twice(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    now = 0.0
    outages = Outages(lambda: now)
    failures = 0

    def failed(tier: str, operation: str, _key: str, error: Exception) -> None:
        nonlocal failures
        failures += 1
        outages.failed(f"store: {operation} of {tier}", error)

    caplog.set_level(logging.INFO)
    store = open_store(
        small_disk / "store", memory_bytes=8 << 20, disk_bytes=1 << 30, on_error=failed,
        on_recovered=lambda tier, operation: outages.recovered(f"store: {operation} of {tier}"),
    )  # fmt: skip
    ledger = LedgerFile(small_disk / "store" / ".ledger" / "counts.json")
    assert ledger.write({("a",): 1.0})
    filler = small_disk / "filler"
    fill(filler)
    for number in range(20):
        now += 1.0
        await put(store, number, 20_000)
        assert await store.get(key(number)) == bytes(20_000)
        assert not ledger.write({("a",): float(number)})
    assert failures == 20
    assert len(caplog.records) == 2, [record.getMessage() for record in caplog.records]
    assert "No space left" in caplog.text
    now += COUNT_SECONDS
    await put(store, 20, 20_000)
    assert "21 times so far" in caplog.text
    filler.unlink()
    await put(store, 21, 20_000)
    now += QUIET_SECONDS
    for number in range(22, 30):
        await put(store, number, 20_000)
    assert ledger.write({("a",): 2.0})
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 5, messages
    assert any("works again; it failed 21 times" in message for message in messages)
    await store.close()
    ledger.close()
