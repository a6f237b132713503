"""Equal layers are compiled once, and compute what the whole graph computes."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from harness import metrics, total
from torch import nn
from torch.nn import functional

import lazyfx


class Layer(nn.Module):
    """A residual layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.gelu(self.up(self.norm(x))) * 0.5
        y = torch.tanh(y + y.mean(-1, keepdim=True)) - torch.sigmoid(y)
        return x + functional.dropout(self.down(y), 0.1, self.training)


class MarkedLayer(Layer):
    """The same, as a region. A region that is bound to one layer would compute all of them."""

    @torch.compiler.nested_compile_region
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


def layers(count: int, width: int, kind: type[Layer] = Layer) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(kind(width) for _ in range(count))).eval()


def test_equal_layers_are_compiled_once(native_server: Any) -> None:
    model, x = layers(4, 12), torch.linspace(-1, 1, 5 * 12).reshape(5, 12)
    options = {"address": native_server.address, "on_error": "raise", "equal_blocks": "once"}
    with torch.no_grad():
        ours = torch.compile(model, backend="lazyfx", options=options)(x)
        (report,) = lazyfx.backend_report().graphs
        (blocks,) = report.equal_blocks
        assert report.outcome == "remote"
        assert blocks.calls >= 3
        assert str(blocks) in str(lazyfx.backend_report())
        assert total(metrics(native_server.metrics_url), "lazyfx_repeated_blocks_total") >= 2
        torch._dynamo.reset()
        assert torch.equal(ours, torch.compile(copy.deepcopy(model), backend="inductor")(x))


def test_with_gradients_the_graph_is_compiled_as_a_whole(native_server: Any) -> None:
    model, x = layers(3, 10), torch.linspace(-1, 1, 40).reshape(4, 10)
    options = {"address": native_server.address, "on_error": "raise", "equal_blocks": "once"}
    loss = torch.compile(model, backend="lazyfx", options=options)(x).square().mean()
    loss.backward()
    (report,) = lazyfx.backend_report().graphs
    assert report.outcome == "remote"
    assert report.equal_blocks == ()
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().mean().backward()
    torch.testing.assert_close(gradients, [parameter.grad for parameter in model.parameters()])


@pytest.mark.parametrize("grad", [False, True])
def test_regions_that_the_user_marks(native_server: Any, grad: bool) -> None:
    model = layers(3, 8 + grad)
    marked = layers(3, 8 + grad, MarkedLayer)
    x = torch.linspace(-1, 1, 4 * (8 + grad)).reshape(4, -1)
    options = {"address": native_server.address, "on_error": "raise"}
    with torch.set_grad_enabled(grad):
        ours = torch.compile(marked, backend="lazyfx", options=options)(x)
        assert lazyfx.backend_report().remote == 1
        theirs = model(x)
    torch.testing.assert_close(ours, theirs)
    if grad:
        ours.square().mean().backward()
        theirs.square().mean().backward()
        for mine, other in zip(marked.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(mine.grad, other.grad)
