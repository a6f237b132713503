"""Broadcasts between ranks that run one after the other, in place of torch.distributed's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist

from lazyfx.warming.rank_messages import RankMessages


@dataclass(frozen=True, slots=True)
class _Place:
    """One broadcast: its group, and its source as a rank of the job."""

    group: Any
    source: int

    @property
    def name(self) -> str:
        ranks = dist.get_process_group_ranks(self.group or dist.group.WORLD)
        return f"{'-'.join(map(str, ranks))}.{self.source}"

    @property
    def is_source(self) -> bool:
        return self.source == dist.get_rank()


class Broadcasts:
    """Functions with the parameters of torch's own, which give what the source has sent.

    Args:
        messages: What the ranks send each other.
    """

    def __init__(self, messages: RankMessages) -> None:
        self._messages = messages
        self._real_broadcast: Final = dist.broadcast

    def functions(self) -> dict[str, Callable[..., Any]]:
        """The functions by their names in torch.distributed.

        Dynamo breaks graphs at torch's own; it does at these too.
        """
        replaced = (self.broadcast, self.broadcast_object_list, self.scatter_object_list)
        return {method.__name__: torch.compiler.disable(method) for method in replaced}

    def broadcast(
        self,
        tensor: torch.Tensor,
        src: int | None = None,
        group: Any = None,
        async_op: bool = False,
        group_src: int | None = None,
    ) -> Any:
        """See `torch.distributed.broadcast`; large tensors keep their own values."""
        if (place := _place(src, group, group_src)) is not None:
            sent = self._messages.exchange("tensor", place.name, place.is_source, tensor)
            if isinstance(sent, torch.Tensor) and sent.shape == tensor.shape:
                with torch.no_grad():
                    tensor.copy_(sent)
        return self._real_broadcast(tensor, src, group, async_op, group_src)

    def broadcast_object_list(
        self,
        object_list: list[Any],
        src: int | None = None,
        group: Any = None,
        device: Any = None,
        group_src: int | None = None,
    ) -> None:
        """See `torch.distributed.broadcast_object_list`.

        Raises:
            MissingMessageError: The source has not run before.
        """
        del device
        if (place := _place(src, group, group_src)) is not None:
            sent = self._messages.exchange("objects", place.name, place.is_source, object_list)
            if not place.is_source:
                object_list[:] = self._messages.required(sent, place.source)

    def scatter_object_list(
        self,
        scatter_object_output_list: list[Any],
        scatter_object_input_list: list[Any] | None = None,
        src: int | None = None,
        group: Any = None,
        group_src: int | None = None,
    ) -> None:
        """See `torch.distributed.scatter_object_list`.

        Raises:
            MissingMessageError: The source has not run before.
        """
        if (place := _place(src, group, group_src)) is not None:
            given = scatter_object_input_list
            sent = self._messages.exchange("scattered", place.name, place.is_source, given)
            found = self._messages.required(sent, place.source)
            scatter_object_output_list[0] = found[dist.get_rank(group)]


def _place(src: int | None, group: Any, group_src: int | None) -> _Place | None:
    """The place of a broadcast; None if this rank is not in its group."""
    if group is dist.GroupMember.NON_GROUP_MEMBER:
        return None
    if group_src is not None:
        members: Any = group or dist.group.WORLD
        return _Place(group, dist.get_global_rank(members, group_src))
    return _Place(group, src or 0)
