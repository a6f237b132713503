"""Small models as .pt2 files, and a runner of commands."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner, Result

from lazyfx.cli.application import app

Run = Callable[..., Result]

FACTORIES = """
import torch

class Small(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, x):
        torch.sin(x)
        return torch.relu(self.linear(x))

def whole():
    return Small().eval(), (torch.ones(2, 4),)

def module_only():
    return Small().eval()

def _relu(x):
    return torch.ops.aten.relu.default(x)

def _gelu(x):
    return torch.ops.aten.gelu.default(x)

def _tanh(x):
    return torch.ops.aten.tanh.default(x)

to_gelu = (_relu, _gelu)
to_tanh = (_relu, _tanh)

def raises():
    raise RuntimeError("no weights here")

def number():
    return 3
"""


class Small(nn.Module):
    """Has dropout, a repeated computation and a dead node; `scale` makes graphs differ."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        torch.sin(x)
        y = self.dropout(self.linear(x))
        return torch.relu(y) * self.scale + torch.relu(y)


def save_program(path: Path, scale: float) -> Path:
    """Export a small model to a .pt2 file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    program = torch.export.export(Small(scale).eval(), (torch.ones(2, 4),))
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One .pt2 file."""
    return save_program(tmp_path_factory.mktemp("programs") / "small.pt2", 0.25)


@pytest.fixture
def factories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module of factories in the current folder."""
    (tmp_path / "cli_factories.py").write_text(FACTORIES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield "cli_factories"
    sys.modules.pop("cli_factories", None)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command in this process, in a wide terminal."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.delenv("LAZYFX_ADDRESS", raising=False)

    def invoke(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke
