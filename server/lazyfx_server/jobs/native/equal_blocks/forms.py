"""What two blocks of a graph must have in common to be compiled as one.

A block is a sequence of consecutive calls. Two blocks with equal forms are one function: the same
calls of the same targets, with the same literals (types included: 1, True and 1.0 differ, and so do
0.0 and -0.0), the same wiring of their operands, the same operands that are one value, and values
with the same sizes, strides, offsets, dtypes, devices and layouts.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
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


def label_of(node: Node) -> Hashable:
    """What a call does, whatever its operands are: equal for the same call in equal blocks.

    A node whose value is not known has a label of its own.
    """
    try:
        operands = [facts_of(operand) for operand in node.all_input_nodes]
        return _call_key(node, lambda _: None), tuple(operands), facts_of(node)
    except UnknownValueError:
        return node


def form_of(block: Sequence[Node]) -> BlockForm:
    """The form of a block.

    Raises:
        UnknownValueError: The value of a node is not known well enough to compare it.
    """
    position = {node: number for number, node in enumerate(block)}
    inputs: dict[Node, int] = {}

    def place(operand: Node) -> Hashable:
        if operand in position:
            return ("inside", position[operand])
        return ("input", inputs.setdefault(operand, len(inputs)))

    calls = tuple((_call_key(node, place), facts_of(node)) for node in block)
    results = frozenset(
        number for node, number in position.items() if any(u not in position for u in node.users)
    )
    return BlockForm((calls, tuple(map(facts_of, inputs))), tuple(inputs), results)


class UnknownValueError(Exception):
    """The value of a node is not known well enough to compare it."""


def facts_of(node: Node) -> Hashable:
    """All that a compile may depend on in a node's value.

    Raises:
        UnknownValueError: It is not a number, a plain tensor, or a group of them.
    """
    return _facts(node.meta.get("example_value"))


def _facts(value: Any) -> Hashable:
    if type(value) is FakeTensor and value.layout is torch.strided:
        sizes = *value.shape, *value.stride(), value.storage_offset()
        return (
            *("tensor", value.dim(), *map(_number, sizes), str(value.device), value.dtype),
            *(value.requires_grad, value.is_conj(), value.is_neg(), value.is_inference()),
        )
    if type(value) in (tuple, list, torch.Size):
        return type(value), tuple(map(_facts, value))
    return "number", _number(value)


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
