"""Graphs inside graphs, compiled as Inductor here compiles them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import lazyfx


class BySize(nn.Module):
    """Chooses by its input's size; the other size is known once the layer has been traced."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cond(
            x.shape[0] > 4,
            lambda x: self.layer(x).sin() * x.shape[0],
            lambda x: self.layer(x).cos(),
            (x,),
        )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_branch_by_size(native_server: Any) -> None:
    model = BySize()
    options = {"address": native_server.address, "on_error": "raise"}
    compiled = torch.compile(model, backend="lazyfx", dynamic=True, options=options)
    with torch.no_grad():
        for rows in (6, 5, 3):
            x = torch.linspace(-1, 1, rows * 3).reshape(rows, 3)
            torch.testing.assert_close(compiled(x), model(x))
    report = lazyfx.backend_report()
    assert report.remote == len(report.graphs)
