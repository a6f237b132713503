"""What is compiled: torch's databases of operators, modules and exports, and the zoo."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from conformance.cases import Case, modules, operators


@dataclass(frozen=True)
class Entry:
    """One call that torch.compile compiles.

    Attributes:
        function: What is called; a module if there is state.
        args: Positional arguments of the call.
        kwargs: Keyword arguments of the call.
        train: Whether its gradients are computed.
    """

    function: Callable[..., Any]
    args: Sequence[Any]
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    train: bool = False


def every_name() -> list[str]:
    """The names of all entries."""
    import zoo

    names = [case.name for case in (*operators(), *modules())]
    return [
        *names,
        *(f"export {name}" for name in _exports()),
        *(f"zoo {n}" for n in zoo.ARCHITECTURES),
    ]


def entries(name: str, calls: int, *, train: bool) -> list[Entry]:
    """The calls of an entry; none if torch lacks something that it needs.

    Args:
        name: One of `every_name`.
        calls: How many calls of an operator or module, at most.
        train: Whether gradients are wanted.
    """
    kind, _, own = name.partition(" ")
    if kind == "zoo":
        return [_of_zoo(own, train=train)]
    if kind == "export":
        case = _exports()[own]
        torch.manual_seed(0)
        return [Entry(case.model, case.example_args, case.example_kwargs, train=train)]
    case = _cases()[name]
    return [Entry(call.function, call.tensors, train=train) for call in case.calls(calls)]


def _of_zoo(name: str, *, train: bool) -> Entry:
    import zoo

    torch.manual_seed(0)
    model, example = zoo.ARCHITECTURES[name].build()
    return Entry(model.train(train), (), dict(example), train=train)


def _cases() -> dict[str, Case]:
    return {case.name: case for case in (*operators(), *modules())}


def _exports() -> dict[str, Any]:
    from torch._export.db.examples import all_examples

    found: dict[str, Any] = all_examples()
    return found


def fresh(entry: Entry) -> Entry:
    """The same call with copies of its state and its arguments, whose gradients are wanted."""
    function = entry.function
    if isinstance(function, nn.Module):
        function = copy.deepcopy(function)
    args = [_leaf(each, train=entry.train) for each in entry.args]
    kwargs = {name: _leaf(each, train=entry.train) for name, each in entry.kwargs.items()}
    return Entry(function, args, kwargs, entry.train)


def _leaf(value: Any, *, train: bool) -> Any:
    if not isinstance(value, torch.Tensor):
        return copy.deepcopy(value)
    made = value.detach().clone()
    wanted = train and (made.is_floating_point() or made.is_complex())
    return made.requires_grad_() if wanted else made
