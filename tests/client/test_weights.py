"""Weights are not sent: the bytes on the socket are counted."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from harness import CSE, DCE
from proxy import proxied
from torch import nn
from torch.export import ExportedProgram
from torch.fx import symbolic_trace

import lazyfx

GIB = 2**30
# Some compiles: a graph, a digest, frames of HTTP/2.
SMALL = 100_000


@pytest.fixture(scope="module")
def server(launch_for_file):
    return launch_for_file("--workers", "1")


class Large(nn.Module):
    """1 GiB of parameters that nothing touches: their pages are never allocated."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(16):
            layer = nn.Linear(1, 1)
            layer.weight = nn.Parameter(torch.empty(4096, 4096))
            layer.in_features = layer.out_features = 4096
            layer.bias = nn.Parameter(torch.empty(4096))
            self.layers.append(layer)

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x)) + torch.sin(x) * 0
        return x


class Reading(nn.Module):
    """A constant product of two buffers that a pass computes, and a buffer it does not read."""

    def __init__(self, rows: int, seed: float) -> None:
        super().__init__()
        self.register_buffer("first", torch.arange(rows * 256.0).reshape(rows, 256) + seed)
        self.register_buffer("second", torch.ones(rows, 256))
        self.register_buffer("other", torch.ones(rows, 256))

    def forward(self, x):
        return x * (self.first + self.second).sum() + self.other * x


def reading(rows: int, seed: float) -> tuple[ExportedProgram, int]:
    """The graph, and the bytes of what constant_fold reads of it."""
    model = Reading(rows, seed)
    program = torch.export.export(model, (torch.ones(rows, 256),))
    return program, model.first.nbytes + model.second.nbytes


FOLD = "constant_fold"
LARGE_FOLD = lazyfx.pass_spec("constant_fold", max_bytes=2**24)


def test_a_gibibyte_of_parameters_is_not_sent(server):
    module = symbolic_trace(Large())
    assert sum(p.nbytes for p in module.parameters()) >= GIB
    with proxied(server.address) as proxy, lazyfx.connect(proxy.address) as client:
        remote = client.compile(module, [DCE, CSE, "remove_dropout", "normalize_arguments"])
        assert remote.cache.status == "miss"
        assert "layers_15" in remote.code
        assert 0 < proxy.sent < 1_000_000


def test_what_a_pass_reads_is_sent_once_for_a_server(server):
    program, read = reading(1024, 0.5)
    progress: list[tuple[int, int]] = []
    with proxied(server.address) as proxy:
        with lazyfx.connect(proxy.address, on_upload=lambda *n: progress.append(n)) as client:
            remote = client.compile(program, [FOLD])
            assert remote.report.nodes_after < remote.report.nodes_before
            # Two tensors of a mebibyte; the third one is not sent.
            assert read < proxy.sent < read + SMALL
            assert progress[0] == (0, read)
            assert progress[-1] == (read, read)
            assert [sent for sent, _ in progress] == sorted(sent for sent, _ in progress)
            x = torch.ones(1024, 256)
            torch.testing.assert_close(remote(x), program.module()(x))
        for _ in range(2):
            before, progress[:] = proxy.sent, []
            with lazyfx.connect(proxy.address, on_upload=lambda *n: progress.append(n)) as another:
                another.compile(reading(1024, 0.5)[0], [FOLD])
                # Another pipeline, so that nothing is in the cache: the values are there.
                again = another.compile(reading(1024, 0.5)[0], [DCE, FOLD], skip_cache_lookup=True)
                assert again.cache.status == "miss"
            assert proxy.sent - before < SMALL
            assert all(total == 0 for _, total in progress)


def test_an_interrupted_upload_resumes(server):
    program, read = reading(4096, 0.25)
    progress: list[tuple[int, int]] = []
    with (
        proxied(server.address) as proxy,
        lazyfx.connect(proxy.address, on_upload=lambda *n: progress.append(n)) as client,
    ):
        cut = proxy.cut_after = read * 3 // 4
        remote = client.compile(program, [LARGE_FOLD])
        assert remote.report.nodes_after < remote.report.nodes_before
        assert progress[-1] == (read, read)
        # It was resumed once, and sent only what the server had not received before the cut.
        (resumed,) = [now for (before, _), (now, _) in pairwise(progress) if now <= before]
        assert resumed > 0
        assert proxy.sent <= cut + (read - resumed) + SMALL
    x = torch.ones(4096, 256)
    with lazyfx.connect(server.address) as client:
        torch.testing.assert_close(client.compile(program, [LARGE_FOLD])(x), program.module()(x))
