"""What two blocks of a graph must have in common to be compiled as one.

A block is a sequence of consecutive calls. Two blocks with equal forms are one function: the same
calls of the same targets, with the same literals (types included: 1, True and 1.0 differ, and so do
0.0 and -0.0), the same wiring of their operands, the same operands that are one value, and values
with the same sizes, strides, offsets, dtypes, devices and layouts. The values are those that the
job computes from the graph's inputs (`own_values`): what a client or a pass recorded of a value in
between may be wrong, and blocks that are equal only by such a record are not.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx import Node

from lazyfx_server.passes.patterns.literal_keys import literal_key


@dataclass(frozen=True, slots=True)
class BlockForm:
    """The form of one block.

    Attributes:
        key: Blocks are equal if their keys are.
        inputs: Values from outside that it reads, in the order of their first use.
        results: Positions in the block of the values that are used outside of it.
    """

    key: Hashable
    inputs: tuple[Node, ...]
    results: frozenset[int]


Facts = Mapping[Node, Hashable]
"""What is known of each value; values that cannot be compared are missing."""


def label_of(node: Node, facts: Facts) -> Hashable:
    """What a call does, whatever its operands are: equal for the same call in equal blocks.

    A node whose value is not known has a label of its own.
    """
    values = (*node.all_input_nodes, node)
    if not all(value in facts for value in values):
        return node
    return _call_key(node, lambda _: None), tuple(facts[value] for value in values)


def form_of(block: Sequence[Node], facts: Facts) -> BlockForm | None:
    """The form of a block; None if a value is not known well enough to compare it."""
    position = {node: number for number, node in enumerate(block)}
    inputs: dict[Node, int] = {}

    def place(operand: Node) -> Hashable:
        if operand in position:
            return ("inside", position[operand])
        return ("input", inputs.setdefault(operand, len(inputs)))

    calls = [_call_key(node, place) for node in block]
    if not all(node in facts for node in (*block, *inputs)):
        return None
    values = [facts[node] for node in (*block, *inputs)]
    results = frozenset(
        number for node, number in position.items() if any(u not in position for u in node.users)
    )
    return BlockForm((tuple(calls), tuple(values)), tuple(inputs), results)


class UnknownValueError(Exception):
    """The value of a node is not known well enough to compare it."""


def facts_of(value: Any) -> Hashable:
    """All that a compile may depend on in a value.

    Raises:
        UnknownValueError: It is not a number, a plain tensor, or a group of them.
    """
    if type(value) is FakeTensor and value.layout is torch.strided:
        sizes = *value.shape, *value.stride(), value.storage_offset()
        return (
            *("tensor", value.dim(), *map(_number, sizes), str(value.device), value.dtype),
            *(value.requires_grad, value.is_conj(), value.is_neg(), value.is_inference()),
        )
    if type(value) in (tuple, list, torch.Size):
        return type(value), tuple(map(facts_of, value))
    return "number", _number(value)


def is_tensor(facts: Hashable) -> bool:
    """Whether these are facts of a tensor."""
    return isinstance(facts, tuple) and facts[0] == "tensor"


def is_symbol(facts: Hashable) -> bool:
    """Whether these are facts of a symbolic number."""
    return isinstance(facts, tuple) and facts[0] == "number" and isinstance(facts[1], str)


def _number(value: Any) -> Hashable:
    """A size; symbolic ones of one graph are the same if their expressions are."""
    if type(value) is int:
        return value
    if type(value) is torch.SymInt:
        return str(value.node.expr)
    raise UnknownValueError


def _call_key(node: Node, node_key: Callable[[Node], Hashable]) -> Hashable:
    """Target and arguments of a call, with operands replaced by what `node_key` returns."""
    target: Hashable = node.target if isinstance(node.target, str) else id(node.target)
    kwargs = tuple((name, literal_key(node.kwargs[name], node_key)) for name in sorted(node.kwargs))
    return node.op, target, literal_key(node.args, node_key), kwargs
