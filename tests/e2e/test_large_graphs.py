"""Graphs that are too large for one message go in chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from torch.fx import symbolic_trace

import lazyfx
from lazyfx.calls import conversation
from lazyfx.capture import preparing

if TYPE_CHECKING:
    from servers import RunningServer


def test_a_large_body_is_uploaded(
    launch_for_file: Callable[..., RunningServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = launch_for_file("--workers", "1", "--max-message-bytes", "4KiB")
    monkeypatch.setattr(conversation, "INLINE_BYTES", 1000)
    monkeypatch.setattr(preparing, "IN_ONE_MESSAGE_BYTES", 1000)
    # Chunks of the upload are bounded too.
    monkeypatch.setattr("lazyfx.calls.uploading.CHUNK_BYTES", 2000)

    def f(x: torch.Tensor) -> torch.Tensor:
        for i in range(1000):
            x = x + float(i)
        return x

    with lazyfx.connect(server.address) as client:
        module = client.compile(symbolic_trace(f), ["dead_code_elimination"])
        assert module.cache.status == "miss"
        x = torch.ones(2)
        assert torch.equal(module(x), f(x))
        small = symbolic_trace(lambda x: x + 1)
        jobs = [
            (small, []),
            (symbolic_trace(lambda x: f(x) * 2), []),
            (small, ["dead_code_elimination"]),
        ]
        found = dict(client.compile_many(jobs))
        assert [torch.equal(found[i](x), jobs[i][0](x)) for i in range(3)] == [True] * 3
