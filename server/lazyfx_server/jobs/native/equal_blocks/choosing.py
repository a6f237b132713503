"""Which blocks of a graph are equal, and may and should be calls of one graph.

A call of a nested graph is a boundary: Inductor fuses nothing across it, and torch's operator for
such calls takes tensors, writes to none of them, and returns tensors that share no memory with its
operands or with each other.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from lazyfx_server.jobs.native.equal_blocks.forms import (
    Facts,
    form_of,
    is_symbol,
    is_tensor,
    label_of,
)
from lazyfx_server.jobs.native.equal_blocks.own_values import own_facts
from lazyfx_server.jobs.native.equal_blocks.periods import Stretch, best_stretch
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.storage import StorageMap

Block = Sequence[Node]

# Smaller blocks are not worth a call.
_LEAST_NODES: Final = 12
_MOST_GROUPS: Final = 8
# Each look reads the whole graph, also those that find nothing of use.
_MOST_LOOKS: Final = 3 * _MOST_GROUPS
# Ways to cut a stretch that are tried.
_MOST_CUTS: Final = 12
# Inductor calls a library for these, so nothing is fused across them. A block without one is a
# chain of pointwise operators, which becomes few kernels only if it stays whole.
_CALLED: Final = words(
    "linear addmm mm bmm baddbmm matmul __matmul__ conv1d conv2d conv3d convolution einsum "
    "scaled_dot_product_attention bilinear"
)


@dataclass(frozen=True, slots=True)
class Group:
    """Equal blocks.

    Attributes:
        blocks: Their nodes, in the order of the graph; no node is in two of them.
        inputs: What each reads, in the same order for all.
        results: Positions of the nodes that each returns.
    """

    blocks: tuple[Block, ...]
    inputs: tuple[tuple[Node, ...], ...]
    results: tuple[int, ...]


def choose_groups(module: GraphModule) -> list[Group]:
    """The groups of equal blocks of a graph that are worth a graph of their own."""
    facts = own_facts(module)
    if facts is None:
        return []
    nodes = [node for node in module.graph.nodes if node.op in _CALLS]
    labels = _numbered([label_of(node, facts) for node in nodes])
    storage = StorageMap(module.graph)
    found: list[Group] = []
    for _ in range(_MOST_LOOKS):
        stretch = best_stretch(labels, _LEAST_NODES)
        if stretch is None or len(found) == _MOST_GROUPS:
            break
        group = _best_group(nodes, stretch, storage, facts)
        for place in range(stretch.start, stretch.end):
            labels[place] = nodes[place]
        if group is not None:
            found.append(group)
    return found


_CALLS: Final = frozenset({"call_function", "call_method"})


def _numbered(labels: Sequence[Hashable]) -> list[Hashable]:
    """Equal labels as equal numbers, which are compared faster."""
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(label, len(numbers)) for label in labels]


def _best_group(
    nodes: Sequence[Node], stretch: Stretch, storage: StorageMap, facts: Facts
) -> Group | None:
    """The best way to cut a stretch into blocks; None if there is none."""
    place = {node: number for number, node in enumerate(nodes)}
    cuts = []
    for start in range(stretch.start, stretch.start + stretch.period):
        repeats = (stretch.end - start) // stretch.period
        if repeats >= max(2, stretch.repeats - 1):
            cuts.append((-repeats, *_crossings(nodes, place, start, stretch.period), start))
    for negative, _, _, start in sorted(cuts)[:_MOST_CUTS]:
        ends = range(start, start - negative * stretch.period, stretch.period)
        blocks = tuple(nodes[first : first + stretch.period] for first in ends)
        if (group := _group(blocks, storage, facts)) is not None:
            return group
    return None


def _crossings(
    nodes: Sequence[Node], place: Mapping[Node, int], start: int, period: int
) -> tuple[int, int]:
    """How many values leave and enter a block; each costs time at each step."""
    block, end = nodes[start : start + period], start + period
    leaving = sum(any(place.get(user, end) >= end for user in node.users) for node in block)
    read = {operand for node in block for operand in node.all_input_nodes}
    return leaving, len(read.difference(block))


def _group(blocks: tuple[Block, ...], storage: StorageMap, facts: Facts) -> Group | None:
    """The most of these blocks that are equal and follow each other; None if no calls may be."""
    if not any(_name(node) in _CALLED for node in blocks[0]):
        return None
    found = [form_of(block, facts) for block in blocks]
    forms = [form for form in found if form is not None]
    if len(forms) < len(blocks):
        return None
    runs = [list(run) for _, run in groupby(range(len(forms)), lambda place: forms[place].key)]
    longest = max(runs, key=len)
    equal = [forms[place] for place in longest]
    results = tuple(sorted(frozenset[int]().union(*(form.results for form in equal))))
    group = Group(
        tuple(blocks[place] for place in longest), tuple(form.inputs for form in equal), results
    )
    return group if len(equal) > 1 and results and _callable(group, storage, facts) else None


def _callable(group: Group, storage: StorageMap, facts: Facts) -> bool:
    """Whether a call may stand for each block.

    Equal blocks have equal effects; what they read from outside may differ.
    """
    results = [group.blocks[0][place] for place in group.results]
    inputs = [node for inputs in group.inputs for node in inputs]
    if not all(is_tensor(facts[node]) or is_symbol(facts[node]) for node in inputs):
        return False
    if not all(is_tensor(facts[node]) for node in results):
        return False
    if any(map(storage.written_after, inputs)):
        # The recorded value of an input may then not be what a block reads.
        return False
    return _returns_fresh_values(group.blocks[0], group.results, storage)


def _returns_fresh_values(block: Block, results: Sequence[int], storage: StorageMap) -> bool:
    """Whether a block writes only to memory of its own, and returns only such, once each."""
    memory: dict[Node, frozenset[Node]] = {}
    for node in block:
        effects = storage.effects[node]
        if effects.state or effects.random or (effects.keep and not effects.writes):
            return False
        if effects.keep and isinstance(node.target, OpOverload) and node.target.namespace != "aten":
            return False
        shared = [memory.get(operand, frozenset({operand})) for operand in effects.aliases]
        memory[node] = frozenset().union(*shared) or frozenset({node})
        if any(operand not in memory for operand in effects.writes):
            return False
        if any(not memory[operand] <= set(block) for operand in effects.writes):
            return False
    returned = [memory[block[place]] for place in results]
    own = frozenset(block)
    return all(part <= own for part in returned) and sum(map(len, returned)) == len(
        frozenset().union(*returned)
    )


def _name(node: Node) -> str:
    target = node.target
    return target if isinstance(target, str) else str(getattr(target, "__name__", ""))
