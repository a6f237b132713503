"""A native compile that nobody waits for any more is stopped, with the compilers that it started."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from harness import metrics, total, wait_until

import lazyfx

pytestmark = pytest.mark.long


def _processes_below(pid: int) -> Iterator[tuple[int, str]]:
    """The living processes that a process has started, with their names."""
    parents: dict[int, tuple[int, str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError, ValueError):
                before, _, after = (entry / "stat").read_text().rpartition(")")
                state, parent = after.split()[:2]
                if state != "Z":
                    parents[int(entry.name)] = int(parent), before.partition("(")[2]
    for child, (parent, name) in parents.items():
        while parent not in (0, pid):
            parent = parents.get(parent, (0, ""))[0]
        if parent == pid:
            yield child, name


def _compilers(pid: int) -> list[str]:
    return [name for _, name in _processes_below(pid) if name in {"g++", "cc1plus", "ld", "as"}]


class _Model(torch.nn.Module):
    """Enough kernels to be in the middle of them for a while."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(torch.nn.Linear(8 + i, 9 + i) for i in range(layers))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = torch.nn.functional.gelu(layer(x)).softmax(-1).cumsum(-1)
        return x


def test_a_native_compile_that_was_given_up_is_stopped_with_its_compilers(
    native_server: Any, tmp_path: Path
) -> None:
    ended: list[BaseException] = []
    client = lazyfx.connect(native_server.address, timeout=600)
    inputs = (torch.ones(4, 8),)
    # With this one the server precompiles its header, for all.
    client.compile(_Model(1), [], inputs).save(tmp_path / "first.pt2", "aot_inductor")
    before = metrics(native_server.metrics_url)
    remote = client.compile(_Model(6), [], inputs)

    def build() -> None:
        try:
            remote.save(tmp_path / "second.pt2", "aot_inductor")
        except lazyfx.LazyfxError as error:
            ended.append(error)

    building = threading.Thread(target=build)
    building.start()
    wait_until(lambda: _compilers(native_server.pid), "a C++ compiler")
    left = time.perf_counter()
    client.close()
    wait_until(lambda: not _compilers(native_server.pid), "the end of the compilers")
    sys.stderr.write(f"compilers ended after {time.perf_counter() - left:.3f} s\n")
    building.join()
    assert isinstance(ended[0], lazyfx.errors.ClosedError)

    def stopped() -> bool:
        samples = metrics(native_server.metrics_url)
        name, result = "lazyfx_native_compiles_total", "stopped"
        grew = total(samples, name, result=result) - total(before, name, result=result)
        return grew == 1 and not total(samples, "lazyfx_in_flight")

    wait_until(stopped, "the end of the compile")
