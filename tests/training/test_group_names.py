"""Artifacts call the groups of this process by their own names."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from lazyfx.backend.group_names import register_names
from lazyfx.errors import UnsupportedGraphError


@pytest.fixture
def groups() -> Iterator[list[str]]:
    """The names of two groups, each with this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield [dist.new_group([0]).group_name for _ in range(2)]
    dist.destroy_process_group()


def reduce(name: str) -> torch.Tensor:
    functional = torch.ops._c10d_functional
    return functional.wait_tensor(functional.all_reduce(torch.ones(2), "sum", name))


def test_code_finds_the_groups_of_this_process(groups: list[str]) -> None:
    with pytest.raises(RuntimeError, match="group1"):
        reduce("group1")
    register_names(groups, has_passes=False)
    register_names(groups, has_passes=False)
    assert torch.equal(reduce("group1"), torch.ones(2))


def test_a_group_in_the_place_of_another_is_refused(groups: list[str]) -> None:
    register_names(groups, has_passes=False)
    with pytest.raises(UnsupportedGraphError, match="process group number 0"):
        register_names(groups[::-1], has_passes=False)


def test_an_order_that_passes_may_have_changed_is_refused(groups: list[str]) -> None:
    register_names(groups[:1], has_passes=True)
    with pytest.raises(UnsupportedGraphError, match="after passes"):
        register_names(groups, has_passes=True)


def test_an_unknown_group_is_refused(groups: list[str]) -> None:
    with pytest.raises(UnsupportedGraphError, match="no process group 'nowhere'"):
        register_names(["nowhere", *groups], has_passes=False)
