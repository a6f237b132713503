"""Another user can write to the store's folder: links, FIFOs, devices and swapped folders."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.store import DiskStore, StoreError, TieredStore, open_store

KEY = "blobs/" + "ab" * 32
LIMIT = 1 << 20
SECRET = b"what nobody may read"


def entry(root: Path) -> Path:
    return root / "blobs" / "ab" / ("ab" * 32)


def link(root: Path) -> None:
    entry(root).symlink_to(root.parent / "secret")


def hard_link(root: Path) -> None:
    os.link(root.parent / "secret", entry(root))


def fifo(root: Path) -> None:
    os.mkfifo(entry(root))


def device(root: Path) -> None:
    entry(root).symlink_to("/dev/zero")


def folder(root: Path) -> None:
    entry(root).mkdir()


def too_long(root: Path) -> None:
    with entry(root).open("wb") as file:
        file.truncate(2**40)


def swapped_shard(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / entry(root).name).write_bytes(SECRET)
    entry(root).parent.rmdir()
    entry(root).parent.symlink_to(elsewhere)


def swapped_space(root: Path) -> None:
    elsewhere = root.parent / "elsewhere"
    (elsewhere / "ab").mkdir(parents=True)
    (elsewhere / "ab" / entry(root).name).write_bytes(SECRET)
    shutil.rmtree(root / "blobs")
    (root / "blobs").symlink_to(elsewhere)


SWAPS = [link, hard_link, fifo, device, folder, too_long, swapped_shard, swapped_space]


@pytest.mark.parametrize("swap", SWAPS, ids=lambda swap: swap.__name__)
async def test_what_is_no_entry_is_never_read(tmp_path: Path, swap: Callable[[Path], None]) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET)
    times = secret.stat().st_mtime_ns
    root = tmp_path / "store"
    store = DiskStore(root, LIMIT)
    await store.put(KEY, b"value")
    entry(root).unlink()
    swap(root)
    with pytest.raises(StoreError):
        await asyncio.wait_for(store.get(KEY), 20)
    if swap is not hard_link and swap is not too_long:
        assert await asyncio.wait_for(store.contains([KEY]), 20) == set()
    # A new value takes the place of what was there, and goes nowhere else.
    if swap is not folder:
        await asyncio.wait_for(store.put(KEY, b"new"), 20)
        assert await store.get(KEY) == b"new"
    await store.close()
    assert secret.read_bytes() == SECRET
    assert secret.stat().st_mtime_ns == times
    for file in (tmp_path / "elsewhere").rglob("*"):
        assert file.is_dir() or file.read_bytes() == SECRET


@pytest.mark.parametrize("name", [".staging", ".quarantine"])
async def test_folders_of_the_store_are_no_links(tmp_path: Path, name: str) -> None:
    root, elsewhere = tmp_path / "store", tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").write_bytes(b"x")
    os.utime(elsewhere / "precious", (0, 0))
    store = DiskStore(root, LIMIT)
    await store.put(KEY, b"value")
    (root / name).rmdir()
    (root / name).symlink_to(elsewhere)
    await store.put(KEY, b"other")
    await store.quarantine(KEY)
    await store.close()
    again = DiskStore(root, LIMIT)
    await again.close()
    assert [file.name for file in elsewhere.iterdir()] == ["precious"]


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/etc/passwd")])
def test_counters_are_a_plain_file(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / ".usage")
    with pytest.raises(StoreError):
        DiskStore(tmp_path, LIMIT)


async def test_a_folder_that_is_removed_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "store"
    failed: list[str] = []
    store = open_store(
        root, memory_bytes=4096, disk_bytes=LIMIT,
        on_error=lambda _tier, operation, _key, error: failed.append(f"{operation}: {error}"),
    )  # fmt: skip
    await store.put(KEY, bytes(2000))
    await settled(store)
    assert store.stats().entries == 1
    shutil.rmtree(root)
    other = "blobs/" + "cd" * 32
    assert await store.get(other) is None
    assert store.stats().entries == 0
    await store.put(other, bytes(3000))
    await settled(store)
    assert store.stats().entries == 1
    assert store.stats().bytes > 3000
    assert failed == []
    await store.close()
    again = DiskStore(root, LIMIT)
    assert again.stats().entries == 1
    await again.close()


async def settled(store: object) -> None:
    assert isinstance(store, TieredStore)
    while store._pending:
        await asyncio.wait({task for _, task in store._pending.values()})
