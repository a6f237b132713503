"""Artifacts call the groups of this process by their own names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist

from lazyfx.backend import group_names
from lazyfx.backend.group_names import register_names, with_names
from lazyfx.errors import UnsupportedGraphError


def created() -> list[str]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    return [dist.new_group([0]).group_name for _ in range(2)]


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of two groups, each with this process alone; no earlier graph had any."""
    monkeypatch.setattr(group_names, "_meant", {})
    yield created()
    dist.destroy_process_group()


def named(name: str) -> Any:
    return torch._C._distributed_c10d._resolve_process_group(name)  # type: ignore[arg-type]


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


def test_after_a_restart_of_the_groups_no_graph_gets_the_group_of_another(
    groups: list[str],
) -> None:
    """dynamo keeps compiled graphs when all groups are destroyed, and torch forgets all names."""
    register_names(groups[:1], has_passes=False)
    call = with_names(lambda: reduce("group0"), groups[:1])
    dist.destroy_process_group()
    assert created() == groups
    with pytest.raises(UnsupportedGraphError, match="process group number 0"):
        register_names(groups[1:], has_passes=False)
    assert torch.equal(call(), torch.ones(2))
    assert named("group0") is named(groups[0])


def test_an_old_group_that_is_still_alive_is_not_used(groups: list[str]) -> None:
    old = named(groups[0])
    register_names(groups, has_passes=False)
    dist.destroy_process_group()
    assert created() == groups
    torch._C._distributed_c10d._register_process_group("group0", old)
    register_names(groups, has_passes=False)
    assert named("group0") is named(groups[0]) is not old


def test_a_destroyed_group_is_an_error_until_it_is_there_again(groups: list[str]) -> None:
    register_names(groups[:1], has_passes=False)
    call = with_names(lambda: reduce("group0"), groups[:1])
    dist.destroy_process_group(named(groups[0]))
    with pytest.raises(UnsupportedGraphError, match="no process group"):
        call()
    dist.destroy_process_group()
    assert created() == groups
    register_names(groups[:1], has_passes=False)
    assert torch.equal(call(), torch.ones(2))


def test_a_name_that_the_job_gave_is_not_taken_from_its_group(groups: list[str]) -> None:
    theirs = named(groups[1])
    torch._C._distributed_c10d._register_process_group("group0", theirs)
    with pytest.raises(UnsupportedGraphError, match="has the name 'group0'"):
        register_names(groups[:1], has_passes=False)
    assert named("group0") is theirs
