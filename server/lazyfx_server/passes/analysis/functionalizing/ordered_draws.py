"""Keeps which element gets which random number while a graph is functionalized.

An operator that draws in place fills its tensor in the order of its memory, whatever strides it has
when the graph is called. Some of what `torch.func.functionalize` calls instead does not: its
dropout draws for a contiguous tensor, `bernoulli.p` returns one, and `normal_functional` fills a
contiguous copy of a part of a tensor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.overrides import TorchFunctionMode

from lazyfx_server.passes.analysis.called_operators import KnownValues, operator_name
from lazyfx_server.passes.analysis.effects import effects_of
from lazyfx_server.passes.analysis.operator_facts import words
from lazyfx_server.passes.analysis.walk import attribute_at

_ATEN = torch.ops.aten

# Calls that fill memory in place, or call one operator that is the same in the new graph.
_KEPT = words(
    "bernoulli bernoulli_ cauchy_ exponential_ geometric_ log_normal_ multinomial normal poisson "
    "rand_like randint_like randn_like random_ uniform_ native_dropout rrelu"
)
# SELU's constants, as in torch's Dropout.cpp.
_ALPHA = 1.7580993408473766
# What the rules below call the parameters that torch has several names for.
_NAMES = {"input": "x", "self": "x", "training": "train"}


def draws_otherwise(node: Node, known: KnownValues) -> bool:
    """Whether tracing could change which element gets which random number of a call."""
    if not node.op.startswith("call_") or not effects_of(node).random:
        return False
    operands, name = node.all_input_nodes, operator_name(node)
    if node.kwargs.get("generator") is not None:
        return True
    if name == "normal_" and operands:
        filled = operands[0]
        return not filled.op.startswith("call_") or bool(effects_of(filled).aliases)
    values = [known.tensor(operand) for operand in operands[:1]]
    if name in _KEPT or _is_dropout(node, name, values):
        return False
    # Drawn for new memory, which is contiguous.
    return any(value is None or not value.is_contiguous() for value in values)


def _is_dropout(node: Node, name: str, values: Iterable[Tensor | None]) -> bool:
    """Whether `Draws` computes a call."""
    if node.op == "call_module":
        called = attribute_at(node.graph.owning_module, str(node.target))
        known = type(called) in (nn.Dropout, nn.AlphaDropout)
    else:
        known = name.rstrip("_") in ("dropout", "alpha_dropout")
    return known and all(value is not None and _is_on_cpu(value) for value in values)


def _is_on_cpu(value: Tensor) -> bool:
    # On others, dropout may be a kernel of its own.
    return value.device.type == "cpu"


class Draws(TorchFunctionMode):
    """Draws in new memory that is laid out as that of the operand, as torch's kernels do."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        given = dict(kwargs or {})
        rule = _RULES.get(func)
        found = rule(*args, **_named(given)) if rule else None
        return func(*args, **given) if found is None else found


def _named(given: Mapping[str, Any]) -> dict[str, Any]:
    # No generator is torch's default generator, which is what the rules draw from.
    without = {k: v for k, v in given.items() if k != "generator" or v is not None}
    return {_NAMES.get(name, name): value for name, value in without.items()}


def _dropout(x: Tensor, p: float = 0.5, train: bool = True, inplace: bool = False) -> Tensor | None:
    """Dropout; None if it draws nothing, or in another way."""
    if not _drops(x, p, train):
        return None
    noise = torch.empty_like(x).bernoulli_(1 - p).div_(1 - p)
    return x.mul_(noise) if inplace else x.mul(noise)


def _alpha_dropout(
    x: Tensor, p: float = 0.5, train: bool = False, inplace: bool = False
) -> Tensor | None:
    """Alpha dropout; None if it draws nothing, or in another way."""
    if not _drops(x, p, train):
        return None
    scale = 1.0 / math.sqrt((_ALPHA * _ALPHA * p + 1) * (1 - p))
    noise = torch.empty_like(x).bernoulli_(1 - p)
    shift = noise.add(-1).mul_(_ALPHA * scale).add_(_ALPHA * scale * p)
    noise.mul_(scale)
    return (x.mul_(noise) if inplace else x.mul(noise)).add_(shift)


def _drops(x: Tensor, p: float, train: bool) -> bool:
    return train and 0 < p < 1 and x.numel() > 0 and _is_on_cpu(x)


def _bernoulli(x: Tensor, p: Any = None, **others: Any) -> Tensor | None:
    if not isinstance(p, float | int) or others:
        return None
    return torch.empty_like(x, memory_format=torch.contiguous_format).bernoulli_(p)


def _in_place(rule: Callable[..., Tensor | None]) -> Callable[..., Tensor | None]:
    return lambda x, p, train: rule(x, p, train, inplace=True)


_RULES: Mapping[Any, Callable[..., Tensor | None]] = {
    nn.functional.dropout: _dropout,
    nn.functional.alpha_dropout: _alpha_dropout,
    **dict.fromkeys((torch.dropout, _ATEN.dropout.default, _ATEN.dropout), _dropout),
    **dict.fromkeys((torch.dropout_, _ATEN.dropout_.default, _ATEN.dropout_), _in_place(_dropout)),
    **dict.fromkeys(
        (torch.alpha_dropout, _ATEN.alpha_dropout.default, _ATEN.alpha_dropout), _alpha_dropout
    ),
    **dict.fromkeys(
        (torch.alpha_dropout_, _ATEN.alpha_dropout_.default, _ATEN.alpha_dropout_),
        _in_place(_alpha_dropout),
    ),
    **dict.fromkeys(
        (torch.bernoulli, Tensor.bernoulli, _ATEN.bernoulli.p, _ATEN.bernoulli), _bernoulli
    ),
}


def draw_in_place(graph: Graph) -> None:
    """Replaces each `bernoulli.p`, which functionalizing made of a `bernoulli_`, by one.

    Args:
        graph: A graph that was traced under `Draws`.
    """
    for node in graph.find_nodes(op="call_function", target=_ATEN.bernoulli.p):
        like, chance = node.args[:2]
        with graph.inserting_before(node):
            if like.target is _ATEN.empty_like.default and len(like.users) == 1:
                memory = like
            else:
                memory = graph.call_function(_ATEN.empty_like.default, (like,))
                memory.meta = dict(node.meta)
            drawn = graph.call_function(_ATEN.bernoulli_.float, (memory, chance))
        drawn.meta = dict(node.meta)
        node.replace_all_uses_with(drawn)
        graph.erase_node(node)
