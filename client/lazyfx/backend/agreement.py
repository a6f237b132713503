"""Agreement of all ranks: mixed outcomes would hang the job in its collectives.

The job's own process group decides. Every rank must compile the same number of graphs in the
same order, as collectives in compiled code require anyway.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map

from lazyfx.errors import LazyfxError


class DisagreementError(LazyfxError):
    """Another rank has no remote result, so this one does not use its own."""


@dataclass(frozen=True, slots=True)
class RankStatus:
    """The status of one graph on one rank.

    Attributes:
        digest: Hex digest of its graph; empty if it could not be encoded.
        problem: Why it cannot use the remote result; empty if it can.
    """

    digest: str
    problem: str


def agree(own: RankStatus, module: GraphModule) -> tuple[str, str]:
    """Exchange the statuses of all ranks.

    Args:
        own: This rank's status.
        module: Its graph.

    Returns:
        Why all ranks go without the remote result, empty if they use it; and where the ranks'
        graphs differ, empty if they do not.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return own.problem, ""
    verdicts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(verdicts, (own.digest, own.problem))
    divergence = ""
    if len({digest for digest, _ in verdicts}) > 1:
        graphs: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(graphs, _lines(module))
        divergence = _first_difference(graphs)
    problem = own.problem
    if not problem:
        failed = next((rank for rank, verdict in enumerate(verdicts) if verdict[1]), None)
        if failed is not None:
            problem = f"rank {failed} cannot use the remote result: {verdicts[failed][1]}"
    return problem, divergence


def _lines(module: GraphModule) -> list[tuple[str, str]]:
    """Each node's name, and a name-independent description of what it computes."""
    numbers = {node: i for i, node in enumerate(module.graph.nodes)}
    return [(node.name, _words(node, numbers)) for node in module.graph.nodes]


def _words(node: Node, numbers: dict[Node, int]) -> str:
    target = node.target
    name = str(target) if isinstance(target, str) else getattr(target, "__name__", "")
    if node.op == "placeholder":
        value = node.meta.get("example_value", node.meta.get("val"))
        name = f"{getattr(value, 'dtype', '')} {tuple(getattr(value, 'shape', ()))}"
    arguments = []

    def note(value: Any) -> Any:
        arguments.append(f"#{numbers[value]}" if isinstance(value, Node) else repr(value))
        return value

    tree_map(note, (node.args, dict(sorted(node.kwargs.items()))))
    return f"{node.op} {name}({', '.join(arguments)})"


def _first_difference(graphs: Sequence[Sequence[tuple[str, str]]]) -> str:
    first = graphs[0]
    for rank, other in enumerate(graphs[1:], start=1):
        for i in range(max(len(first), len(other))):
            ours = first[i] if i < len(first) else ("(none)", "(no node)")
            theirs = other[i] if i < len(other) else ("(none)", "(no node)")
            if ours[1] != theirs[1]:
                return (
                    f"ranks 0 and {rank} differ from node {i} on: {ours[0]!r} is {ours[1]} on "
                    f"rank 0, and {theirs[0]!r} is {theirs[1]} on rank {rank}"
                )
    return "the ranks' graphs differ in metadata only"
