"""Native artifacts through a server that builds none itself, in front of one that does."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from harness import connected, metrics, total
from proxy import proxied
from servers import RunningServer
from training.counting import native_compiles

import lazyfx
from lazyfx.shared.native.native_request import native_request
from lazyfx.v1 import compiler_pb2 as pb

RANKS = 8
X = torch.linspace(-1, 1, 8)


class Model(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) * 7 + torch.sin(x)


def trained(address: str) -> tuple[str, torch.Tensor]:
    """What became of the graph of a job, and its result."""
    torch._dynamo.reset()
    lazyfx.backend.reset_backend_report()
    compiled = torch.compile(Model(), backend="lazyfx", options={"address": address})
    result = compiled(X)
    (graph,) = lazyfx.backend_report().graphs
    return graph.outcome, result


def test_the_ranks_of_a_node_cost_one_native_compile_and_one_download(
    native_server: Any, launch: Callable[..., RunningServer]
) -> None:
    with proxied(native_server.address) as network:
        tier = launch("--workers", "1", "--upstream", network.address)
        with lazyfx.connect(tier.address) as client:
            # It has no compiler, and passes on what the upstream can do.
            assert client.server_info().native.torch == torch.__version__
            module = client.compile(torch.export.export(Model(), (X,)))
        request = pb.GetArtifactRequest(
            module_key=bytes.fromhex(module.key),
            kind=pb.ARTIFACT_KIND_INDUCTOR,
            native=native_request([torch.device("cpu")], None, {}),
        )

        def rank(_: int) -> tuple[bytes, set[str]]:
            with connected(tier.address) as stub:
                parts = list(stub.GetArtifact(request, timeout=300))
            stages = {part.progress.stage for part in parts if part.HasField("progress")}
            return b"".join(part.chunk.data for part in parts), stages

        before, received = native_compiles(native_server), network.received
        with ThreadPoolExecutor(RANKS) as pool:
            ranks = list(pool.map(rank, range(RANKS)))
        assert len({data for data, _ in ranks}) == 1
        size = len(ranks[0][0])
        assert native_compiles(native_server) == before + 1
        assert size <= network.received - received < 1.2 * size + 20_000
        # The progress is that of the upstream: this server has nothing to tell.
        assert set().union(*(stages for _, stages in ranks)) - {"waiting"}

        outcome, result = trained(tier.address)
        assert outcome == "remote"
        assert torch.allclose(result, Model()(X))
        made = native_compiles(native_server)
        network.close()
        # The tier has all that a rank needs that starts now.
        outcome, result = trained(tier.address)
        assert outcome == "remote"
        assert torch.allclose(result, Model()(X))
        assert native_compiles(native_server) == made
    asked = metrics(tier.metrics_url)
    assert total(asked, "lazyfx_upstream_requests_total", what="artifact", outcome="answered") == 2
