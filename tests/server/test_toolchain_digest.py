"""What the key of a compiled kernel covers besides its source, and what turns sharing off."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from lazyfx_server.jobs.native.toolchain.compiler import Compiler
from lazyfx_server.jobs.native.toolchain.toolchain_digest import linked, read_toolchain

FAKE = Compiler("g++", "/usr/bin/g++", {}, (), b"", (), (), ())
SEARCHED = "#include <...> search starts here:\n {}\nEnd of search list.\n"


@pytest.fixture
def compiler(tmp_path: Path) -> Compiler:
    """A compiler with one of each file that belongs to its toolchain, and `answers` to change."""
    for name in ("answers", "usr", "usr/bits", "lib", "torch", "torch/lib"):
        (tmp_path / name).mkdir()
    for name in (
        "cc1plus", "lib/crti.o", "lib/libstdc++.so", "lib/libomp.so", "torch/lib/libgomp.so",
        "torch/lib/libtorch_cpu.so", "torch/c10.h", "usr/filesystem", "usr/bits/dlfcn.h", "plugin",
        "libm.so.6", "hidden.h",
    ):  # fmt: skip
        (tmp_path / name).write_text("1")
    (tmp_path / "lib/libm.so").write_text(f"GROUP ( {tmp_path}/libm.so.6 )")
    (tmp_path / "usr/linked").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/x.h").write_text("1")
    (tmp_path / "elsewhere/circle").symlink_to(tmp_path / "usr")
    for option, said in {
        "-march=native": "1", "-E": SEARCHED.format(tmp_path / "usr"),
        "-print-search-dirs": f"libraries: ={tmp_path}/lib",
        "-print-file-name=liblto_plugin.so": f"{tmp_path}/plugin",
        "-print-file-name=specs": "specs", "-print-file-name=libgomp.spec": "libgomp.spec",
    }.items():  # fmt: skip
        (tmp_path / "answers" / option).write_text(said)
    tool = tmp_path / "g++"
    tool.write_text(f'#!/bin/sh\nexec cat "{tmp_path}/answers/$1"\n')
    tool.chmod(0o755)
    return replace(
        FAKE, path=str(tool), programs=(str(tmp_path / "cc1plus"),),
        include=(str(tmp_path / "torch"),), libraries=(str(tmp_path / "torch/lib"),),
    )  # fmt: skip


def test_a_toolchain_is_known_by_all_that_it_reads(compiler: Compiler, tmp_path: Path) -> None:
    assert linked(compiler)[-1] == str(tmp_path / "libm.so.6")
    first = read_toolchain(compiler)
    assert read_toolchain(compiler) == first
    assert not first.changed()
    digests = {first.digest, read_toolchain(replace(compiler, identity=b"other torch")).digest}
    names = (
        "answers/-march=native", "cc1plus", "lib/crti.o", "lib/libstdc++.so", "lib/libomp.so",
        "torch/lib/libgomp.so", "torch/lib/libtorch_cpu.so", "torch/c10.h", "usr/filesystem",
        "usr/bits/dlfcn.h", "plugin", "libm.so.6", "elsewhere/x.h",
    )  # fmt: skip
    for name in names:
        (tmp_path / name).write_text("2")
        digests.add(read_toolchain(compiler).digest)
        (tmp_path / name).write_text("1")
    (tmp_path / "usr/filesystem").rename(tmp_path / "usr/other")
    digests.add(read_toolchain(compiler).digest)
    assert len(digests) == 3 + len(names)


def test_an_upgraded_toolchain_has_changed(compiler: Compiler, tmp_path: Path) -> None:
    for name in ("cc1plus", "usr/bits/dlfcn.h", "torch/c10.h", "libm.so.6"):
        before = read_toolchain(compiler)
        (tmp_path / "new").write_text("2")
        (tmp_path / "new").replace(tmp_path / name)
        assert before.changed() in (str(tmp_path / name), str((tmp_path / name).parent))


def test_a_toolchain_that_does_not_answer_has_no_digest(compiler: Compiler, tmp_path: Path) -> None:
    for answer in (tmp_path / "answers").iterdir():
        said = answer.read_text()
        answer.unlink()
        with pytest.raises(OSError, match="does not"):
            read_toolchain(compiler)
        answer.write_text(said)
    (tmp_path / "answers/-print-search-dirs").write_text("libraries: =/nowhere")
    (tmp_path / "torch/lib").rename(tmp_path / "gone")
    with pytest.raises(OSError, match="no folder with libraries"):
        read_toolchain(compiler)


def test_a_header_that_cannot_be_read_is_an_error(
    compiler: Compiler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scandir = os.scandir

    def closed(path: str) -> object:
        if str(path).endswith("bits"):
            raise PermissionError(f"{path} is closed")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", closed)  # as root, tests can read every folder
    with pytest.raises(PermissionError, match=str(tmp_path / "usr/bits")):
        read_toolchain(compiler)
