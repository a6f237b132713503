"""A custom operator is compiled if the server has registered it; otherwise the error names it."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nursery
import pytest
import torch

import lazyfx
from lazyfx.errors import InvalidRequestError

SOURCE = """
import torch

@torch.library.custom_op("lazyfx_shop::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return x * 2

@twice.register_fake
def _(x):
    return torch.empty_like(x)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with a module that registers an operator; registered in this process too."""
    path = tmp_path / "lazyfx_shop.py"
    path.write_text(SOURCE)
    if not hasattr(torch.ops.lazyfx_shop, "twice"):
        spec = importlib.util.spec_from_file_location("lazyfx_shop", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return tmp_path


def graph() -> torch.fx.GraphModule:
    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.ops.lazyfx_shop.twice(x) + 1

    return torch.export.export(Model(), (torch.ones(3),)).module(check_guards=False)


def test_an_operator_of_a_named_module(shop: Path, launch: Callable[..., Any]) -> None:
    path = os.pathsep.join([str(shop), os.environ.get("PYTHONPATH", "")])
    server = launch("--operator-modules", "lazyfx_shop", environment={"PYTHONPATH": path})
    with lazyfx.connect(server.address) as client:
        passes = ["dead_code_elimination", "shape_propagation"]
        module = client.compile(graph(), passes=passes)
        assert "lazyfx_shop.twice" in module.code
        torch.testing.assert_close(module(torch.ones(3)), torch.full((3,), 3.0))


def test_an_operator_that_the_server_lacks_is_named(shop: Path, launch: Callable[..., Any]) -> None:
    server = launch()
    by_packet = torch.fx.symbolic_trace(lambda x: torch.ops.lazyfx_shop.twice(x) + 1)
    for lacking, name in ((graph(), "twice.default"), (by_packet, "twice")):
        with (
            lazyfx.connect(server.address) as client,
            pytest.raises(InvalidRequestError) as caught,
        ):
            client.compile(lacking, passes=["dead_code_elimination"])
        assert f"'lazyfx_shop::{name}'" in str(caught.value)
        assert "--operator-modules" in str(caught.value)


def test_a_module_that_is_not_there_is_refused_at_the_start() -> None:
    command = ["-m", "lazyfx_server", "--operator-modules", "no_such_module"]
    done = nursery.run("server", command, timeout=120)
    assert done.returncode
    assert "--operator-modules no_such_module: there is no such module" in done.stderr
