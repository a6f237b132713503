"""Where a client keeps the libraries of kernels, and when it does not."""

from __future__ import annotations

import os
import stat
from datetime import datetime, timezone
from pathlib import Path

import pytest

from lazyfx.artifacts import kernel_files
from lazyfx.artifacts.kernel_files import kept_kernels, kernel_folder, library_file
from lazyfx.trust.verifying import Provenance

_TIME = datetime(2026, 1, 1, tzinfo=timezone.utc)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of Inductor."""
    path = tmp_path / "inductor"
    path.mkdir(mode=0o755)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(path))
    return path


def signed(key: str = "aa", tenant: str = "11") -> Provenance:
    return Provenance("inductor", "", "", "", "", "", "", "", _TIME, _TIME, key, tenant)


def own_folder() -> Path:
    folder = kernel_folder(signed())
    assert folder is not None
    return folder


def test_each_server_and_tenant_has_a_folder() -> None:
    with library_file(b"library", own_folder()) as path:
        assert path.read_bytes() == b"library"
    assert len(kept_kernels(own_folder())) == 8
    for other in (signed(key="bb"), signed(tenant="22")):
        folder = kernel_folder(other)
        assert folder is not None
        assert kept_kernels(folder) == b""


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_folder_that_others_can_change_is_not_used(cache: Path, mode: int) -> None:
    folder = own_folder()
    for place in (cache, folder.parent, folder):
        before = stat.S_IMODE(place.stat().st_mode)
        place.chmod(mode)
        assert kernel_folder(signed()) is None
        place.chmod(before)
        assert kernel_folder(signed()) == folder


def test_a_folder_of_another_user_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    folder, other = own_folder(), os.geteuid() + 1
    if os.geteuid() == 0:
        os.chown(folder, other, -1)
    else:  # the folder is not that of whoever this process now is
        monkeypatch.setattr(os, "geteuid", lambda: other)
    assert kernel_folder(signed()) is None


def test_without_a_folder_nothing_is_left_behind(cache: Path) -> None:
    with library_file(b"library", None) as path:
        assert path.read_bytes() == b"library"
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert not path.parent.exists()
    assert list(cache.iterdir()) == []


def test_only_the_libraries_used_last_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_files, "_MAX_KEPT", 2)
    folder, paths = own_folder(), []
    for number in range(3):
        with library_file(b"%d" % number, folder) as path:
            paths.append(path)
        os.utime(path, (number, number))
    with library_file(b"0", folder):
        pass
    assert len(kept_kernels(folder)) == 2 * 8
    assert sorted(folder.iterdir()) == sorted([paths[0], paths[2]])
