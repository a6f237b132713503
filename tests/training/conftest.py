"""Fixtures of the tests of torch.compile(backend="lazyfx")."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from lazyfx.backend import reset_backend_report

# Helpers shared by the folders that talk to a running server, and the tiny models.
_TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(_TESTS), str(_TESTS / "server")]


@pytest.fixture(autouse=True)
def _fresh_dynamo() -> Iterator[None]:
    """Nothing compiled before, nothing counted before."""
    torch._dynamo.reset()
    reset_backend_report()
    yield
    torch._dynamo.reset()
