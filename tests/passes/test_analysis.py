"""What `analyze` counts where sizes are symbolic."""

from __future__ import annotations

import torch
from passes.running import run

from lazyfx.shared import wire
from lazyfx.v1 import graph_pb2
from lazyfx_server.passes import Registry


def _dynamic() -> wire.Encoded:
    class Net(torch.nn.Module):
        def forward(self, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
            return torch.relu(x @ w)

    batch = torch.export.Dim("batch", min=2, max=1000)
    program = torch.export.export(
        Net(), (torch.ones(3, 4), torch.ones(4, 5)), dynamic_shapes=({0: batch}, None)
    )
    return wire.encode(program.graph_module)


def test_symbolic_sizes_count_as_in_the_example() -> None:
    ran = run(wire.decode(_dynamic().body), Registry().create("analyze"))
    data = ran.runs[0].data
    assert data["flops"] == 2 * 3 * 4 * 5
    assert data["peak_bytes"] == 2 * 3 * 5 * 4
    assert data["unknown"] == 0
    assert "120 flops" in ran.note


def test_sizes_that_no_report_can_hold_are_unknown() -> None:
    body = graph_pb2.GraphBody.FromString(_dynamic().body)
    for symbol in body.symbols:
        symbol.ClearField("maximum")
        symbol.hint = 2**62
    module = wire.decode(body.SerializeToString(deterministic=True))
    data = run(module, Registry().create("analyze")).runs[0].data
    assert (data["flops"], data["unknown"]) == (0, 1)
