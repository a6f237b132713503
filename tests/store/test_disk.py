"""Files: restarts, damage, bounds, two processes on one folder."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfx_server.store import DiskStore, StoreError, TieredStore, VerifiedStore, open_store
from lazyfx_server.store.disk_usage import SharedUsage, UseClock

LIMIT = 1 << 20


def key(name: object, space: str = "modules") -> str:
    return f"{space}/{hashlib.sha256(str(name).encode()).hexdigest()}"


def file_of(root: Path, name: str) -> Path:
    space, digits = name.split("/")
    return root / space / digits[:2] / digits


def entries(root: Path) -> list[Path]:
    found = (path for path in root.glob("[!.]*/*/*") if path.is_file())
    return sorted(found)


def bytes_in(root: Path) -> int:
    return sum(path.stat().st_size for path in entries(root))


async def test_survives_a_restart(tmp_path: Path) -> None:
    first = DiskStore(tmp_path, LIMIT)
    await first.put(key("a"), b"value")
    await first.put(key("b", "blobs"), b"")
    before = first.stats()
    await first.close()
    second = DiskStore(tmp_path, LIMIT)
    assert second.stats() == before
    assert await second.get(key("a")) == b"value"
    assert await second.contains([key("a"), key("b", "blobs")]) == {key("a"), key("b", "blobs")}
    await second.close()


async def test_a_smaller_bound_holds_from_the_start(tmp_path: Path) -> None:
    first = DiskStore(tmp_path, LIMIT)
    for number in range(10):
        await first.put(key(number), bytes(50_000))
    await first.close()
    second = DiskStore(tmp_path, 200_000)
    assert bytes_in(tmp_path) == second.stats().bytes <= 200_000
    await second.close()


async def test_counters_recover_from_a_process_that_died(tmp_path: Path) -> None:
    first = DiskStore(tmp_path, LIMIT)
    await first.put(key("a"), b"12345")
    await first.close()
    (tmp_path / ".usage").write_bytes(b"\xff" * 16)
    second = DiskStore(tmp_path, LIMIT)
    assert (second.stats().entries, second.stats().bytes) == (1, 5)
    await second.close()


@pytest.mark.parametrize("use", ["get", "contains"])
async def test_what_was_used_least_recently_goes_first(tmp_path: Path, use: str) -> None:
    store = DiskStore(tmp_path, 1000)
    now = time.time()
    for number in range(10):
        await store.put(key(number), bytes(100))
        past = now - 1000 + number
        os.utime(file_of(tmp_path, key(number)), (past, past))
    if use == "get":
        assert await store.get(key(0)) == bytes(100)
    else:
        assert await store.contains([key(0)]) == {key(0)}
    await store.put(key("new"), bytes(100))
    kept = {number for number in range(10) if file_of(tmp_path, key(number)).exists()}
    assert kept == {0, 3, 4, 5, 6, 7, 8, 9}  # down to 90 %, the new one included
    assert store.stats().evictions == 2
    assert file_of(tmp_path, key("new")).exists()
    await store.close()


async def test_bound_holds_at_every_moment(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, 500_000)
    worst = 0

    async def watch() -> None:
        nonlocal worst
        while True:
            worst = max(worst, await asyncio.to_thread(_bytes_at_one_moment, tmp_path))
            await asyncio.sleep(0)

    watcher = asyncio.ensure_future(watch())
    await asyncio.gather(*(store.put(key(n), bytes(20_000 + n)) for n in range(300)))
    watcher.cancel()
    assert 0 < worst <= 500_000
    assert bytes_in(tmp_path) == store.stats().bytes
    assert len(entries(tmp_path)) == store.stats().entries
    await store.close()


def _bytes_at_one_moment(root: Path) -> int:
    usage = SharedUsage(root / ".usage")
    with usage.locked():  # else what is replaced while counting counts twice
        total = bytes_in(root)
    usage.close()
    return total


async def test_orphans_of_dead_writers_are_swept(tmp_path: Path) -> None:
    staging = tmp_path / ".staging"
    staging.mkdir()
    (staging / "1-old").write_bytes(b"x")
    (staging / "2-new").write_bytes(b"x")
    os.utime(staging / "1-old", (1, 1))
    await DiskStore(tmp_path, LIMIT).close()
    assert [path.name for path in staging.iterdir()] == ["2-new"]


Damage = Callable[[Path], None]


def flip(position: int) -> Damage:
    def damage(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 0x10
        path.write_bytes(data)

    return damage


DAMAGES: dict[str, Damage] = {
    "bit flip in the magic": flip(0),
    "bit flip in the length": flip(9),
    "bit flip in the digest": flip(20),
    "bit flip in the value": flip(-1),
    "truncated value": lambda path: os.truncate(path, 100),
    "truncated header": lambda path: os.truncate(path, 7),
    "zero length": lambda path: os.truncate(path, 0),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)) and None,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0") and None,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("size", [1000, 400_000])
async def test_damage_is_a_miss_and_put_aside(tmp_path: Path, damage: str, size: int) -> None:
    told: list[tuple[str, str]] = []
    store = VerifiedStore(
        DiskStore(tmp_path, LIMIT), on_corrupt=lambda tier, name: told.append((tier, name))
    )
    value = os.urandom(size)
    await store.put(key("a"), value)
    DAMAGES[damage](file_of(tmp_path, key("a")))
    assert await store.get(key("a")) is None
    assert told == [("disk", key("a"))]
    assert await store.contains([key("a")]) == set()
    digits = key("a").split("/")[1]
    assert [path.name for path in (tmp_path / ".quarantine").iterdir()] == [f"modules-{digits}"]
    await store.put(key("a"), value)
    assert await store.get(key("a")) == value
    assert store.stats().entries == 1
    await store.close()


async def test_entry_under_another_name_is_damage(tmp_path: Path) -> None:
    told: list[tuple[str, str]] = []
    store = VerifiedStore(
        DiskStore(tmp_path, LIMIT), on_corrupt=lambda tier, name: told.append((tier, name))
    )
    await store.put(key("a"), b"a")
    await store.put(key("b"), b"b")
    file_of(tmp_path, key("a")).replace(file_of(tmp_path, key("b")))
    assert await store.get(key("b")) is None
    assert told == [("disk", key("b"))]
    await store.close()


async def test_quarantine_is_bounded(tmp_path: Path) -> None:
    store = VerifiedStore(DiskStore(tmp_path, LIMIT))
    for number in range(70):
        await store.put(key(number), b"value")
        os.truncate(file_of(tmp_path, key(number)), 3)
        assert await store.get(key(number)) is None
    assert len(list((tmp_path / ".quarantine").iterdir())) == 64
    assert store.stats().entries == 0
    await store.close()


async def test_full_disk_is_an_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = DiskStore(tmp_path, LIMIT)
    await store.put(key("a"), b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", full)
        with pytest.raises(StoreError, match="No space left"):
            await store.put(key("a"), b"new")
    assert await store.get(key("a")) == b"old"
    assert list((tmp_path / ".staging").iterdir()) == []
    assert (store.stats().entries, store.stats().bytes) == (1, 3)
    await store.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> object:
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)],
        capture_output=True,
        check=False,
    )
    if made.returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def test_really_full_disk(tiny_disk: Path) -> None:
    errors: list[tuple[str, str]] = []
    store = open_store(
        tiny_disk,
        memory_bytes=1000,
        disk_bytes=10 << 20,  # more than there is
        on_error=lambda tier, operation, name, error: errors.append((tier, operation)),
    )
    for number in range(10):
        await store.put(key(number), os.urandom(50_000))
    await store.put(key("small"), b"x")
    await store.close()
    assert errors
    assert set(errors) == {("disk", "put")}
    again = open_store(tiny_disk, memory_bytes=1000, disk_bytes=10 << 20)
    assert again.stats().entries >= 3
    assert again.stats().bytes == bytes_in(tiny_disk)
    await again.close()


async def test_unreadable_entry_is_a_counted_miss(tmp_path: Path) -> None:
    errors: list[tuple[str, str, str]] = []
    store = open_store(
        tmp_path,
        memory_bytes=1 << 16,
        disk_bytes=LIMIT,
        on_error=lambda tier, operation, name, error: errors.append((tier, operation, name)),
    )
    file_of(tmp_path, key("a")).mkdir(parents=True)  # root reads whatever the mode is
    assert await store.get(key("a")) is None
    assert errors == [("disk", "get", key("a"))]
    await store.close()


async def test_folder_that_vanishes_is_a_miss(tmp_path: Path) -> None:
    store = open_store(tmp_path / "store", memory_bytes=1 << 16, disk_bytes=LIMIT)
    await store.put(key("a"), b"x" * 30_000)
    await asyncio.sleep(0.1)
    shutil.rmtree(tmp_path / "store")
    assert await store.get(key("a")) is None
    await store.put(key("b"), b"value")
    assert await store.get(key("b")) == b"value"  # memory still serves
    await store.close()


def test_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="cannot be used as a store"):
        open_store(tmp_path / "file", memory_bytes=1 << 16, disk_bytes=LIMIT)


async def test_closed_store_says_so(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, LIMIT)
    await store.close()
    await store.close()
    with pytest.raises(StoreError, match="closed"):
        await store.get(key("a"))


WRITER = textwrap.dedent(
    """
    import asyncio, hashlib, os, sys
    from pathlib import Path
    from lazyfx_server.store import DiskStore, VerifiedStore
    def key(name):
        return "modules/" + hashlib.sha256(str(name).encode()).hexdigest()
    async def main(root, who):
        bad = []
        store = VerifiedStore(DiskStore(root, 300_000), on_corrupt=lambda t, k: bad.append(k))
        for number in range(150):
            name = number % 40
            value = str(name).encode() * 2000
            await store.put(key(name), value)
            found = await store.get(key((name * 7) % 40))
            assert found in (None, str((name * 7) % 40).encode() * 2000)
        assert not bad
        await store.close()
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
    """
)


async def test_two_processes_keep_one_bound(tmp_path: Path) -> None:
    writers = [
        await asyncio.create_subprocess_exec(sys.executable, "-c", WRITER, str(tmp_path), str(n))
        for n in range(2)
    ]
    worst = 0
    waiting = asyncio.gather(*(writer.wait() for writer in writers))
    while not waiting.done():
        worst = max(worst, await asyncio.to_thread(_bytes_at_one_moment, tmp_path))
        await asyncio.sleep(0.002)
    assert await waiting == [0, 0]
    assert 0 < worst <= 300_000
    usage = SharedUsage(tmp_path / ".usage")
    assert usage.read() == (len(entries(tmp_path)), bytes_in(tmp_path))  # no count was lost
    usage.close()


async def test_other_process_sees_an_entry_at_once(tmp_path: Path) -> None:
    one, other = DiskStore(tmp_path, LIMIT), DiskStore(tmp_path, LIMIT)
    await one.put(key("a"), b"value")
    assert await other.get(key("a")) == b"value"
    assert other.stats() == one.stats()
    await one.close()
    await other.close()


def test_tiered_is_what_open_store_makes(tmp_path: Path) -> None:
    store = open_store(tmp_path, memory_bytes=1 << 16, disk_bytes=LIMIT)
    assert isinstance(store, TieredStore)
    assert store.name == "memory+disk"


YEAR_NS = 366 * 24 * 3600 * 10**9


def _age(root: Path, by: int) -> None:
    """Move the times of all files, as if the clock had been off by as many nanoseconds."""
    for path in (*entries(root), *(root / ".staging").iterdir()):
        used = path.stat().st_mtime_ns + by
        os.utime(path, ns=(used, used))


@pytest.mark.parametrize("by", [YEAR_NS, -YEAR_NS], ids=["ahead", "behind"])
async def test_a_clock_that_jumps_a_year_changes_no_order_of_eviction(
    tmp_path: Path, by: int
) -> None:
    first = DiskStore(tmp_path, LIMIT)
    for number in range(9):
        await first.put(key(number), bytes(100_000))
    await first.close()
    (tmp_path / ".staging" / "1-left").write_bytes(b"x")
    _age(tmp_path, by)
    second = DiskStore(tmp_path, LIMIT)
    assert list((tmp_path / ".staging").iterdir()) == []
    # Nothing leaves because of its date.
    assert await second.contains([key(number) for number in range(9)]) == {
        key(number) for number in range(9)
    }
    for number in (0, 1):
        assert await second.get(key(number))
    for number in range(9, 13):
        await second.put(key(number), bytes(100_000))
        assert await second.get(key(0))
    kept = await second.contains([key(number) for number in range(13)])
    assert {key(0), key(1), *(key(number) for number in range(9, 13))} <= kept
    assert key(2) not in kept
    await second.close()


def test_times_of_use_never_go_back() -> None:
    times = iter([100, 50, 60_000])
    uses = UseClock(lambda: next(times))
    uses.saw(90)
    found = [uses.now() for _ in range(3)]
    assert found == [1090, 2090, 60_000]
