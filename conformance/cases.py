"""Calls from torch's own databases of operators and modules, as functions of tensors."""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

# An entry is tried with the first of these that it supports, else with its own first.
DTYPES = ("float32", "int64", "bool")
# Samples are chosen from this many: the first one, and others at equal distances.
_LOOKED_AT = 48


@dataclass(frozen=True)
class Call:
    """A call that takes only tensors.

    Attributes:
        function: Takes the tensors positionally; a module if there is state.
        tensors: Its arguments.
    """

    function: Callable[..., Any]
    tensors: list[Tensor]


@dataclass(frozen=True)
class Case:
    """An entry of one of torch's databases.

    Attributes:
        name: Its name, "op abs" or "module Linear".
        make: Returns a number of its calls, in the first of these dtypes that it supports.
    """

    name: str
    make: Callable[[int, Sequence[str]], list[Call]]

    def calls(self, at_most: int = 1, dtypes: Sequence[str] = DTYPES) -> list[Call]:
        """Calls with dense tensors; none if torch lacks something that the entry needs."""
        torch.manual_seed(0)
        try:
            made = self.make(at_most, dtypes)
        except Exception:  # noqa: BLE001 - some need what is not here (SciPy, CUDA)
            return []
        # Inputs are copied for each call, which torch cannot do with compressed sparse ones.
        return [c for c in made if all(t.layout is torch.strided for t in c.tensors)]


def operators(start: int = 0, step: int = 1) -> list[Case]:
    """The operators in torch's database that the CPU supports, by name."""
    from torch.testing._internal.common_methods_invocations import op_db

    by_name = sorted(op_db, key=lambda op: op.formatted_name)[start::step]
    return [Case(f"op {op.formatted_name}", functools.partial(_of_operator, op)) for op in by_name]


def modules(start: int = 0, step: int = 1) -> list[Case]:
    """The modules in torch's database, by name."""
    from torch.testing._internal.common_modules import module_db

    by_name = sorted(module_db, key=lambda info: info.name)[start::step]
    return [
        Case(f"module {info.formatted_name}", functools.partial(_of_module, info))
        for info in by_name
    ]


def _of_operator(op: Any, at_most: int, dtypes: Sequence[str]) -> list[Call]:
    dtype = _dtype(op.supported_dtypes("cpu"), dtypes)
    if dtype is None:
        return []
    samples = op.sample_inputs("cpu", dtype, requires_grad=False)
    return [
        _call(op, (sample.input, *sample.args), sample.kwargs)
        for sample in _spread(samples, at_most)
    ]


def _of_module(info: Any, at_most: int, dtypes: Sequence[str]) -> list[Call]:
    dtype = _dtype(info.supported_dtypes("cpu"), dtypes)
    calls = []
    for training in (True, False) if info.train_and_eval_differ else (True,):
        samples = info.module_inputs_func(
            info, device="cpu", dtype=dtype, requires_grad=False, training=training
        )
        for sample in _spread(samples, at_most):
            made, given = sample.constructor_input, sample.forward_input
            if given is None:
                continue
            module = info.module_cls(*made.args, **made.kwargs).to(dtype)
            # Lazy modules get their shapes from the first call.
            module(*copy.deepcopy(given.args), **copy.deepcopy(given.kwargs))
            module.train(training)
            calls.append(_call(module, given.args, given.kwargs))
    return calls


def _dtype(supported: Any, wanted: Sequence[str]) -> torch.dtype | None:
    own = sorted(supported, key=str)
    asked = (getattr(torch, name) for name in wanted)
    return next((dtype for dtype in (*asked, *own) if dtype in supported), None)


def _spread(samples: Iterator[Any] | Sequence[Any], at_most: int) -> list[Any]:
    if at_most == 1:
        return list(itertools.islice(samples, 1))
    found = list(itertools.islice(samples, _LOOKED_AT))
    return found[:: -(-len(found) // at_most) or 1]


class Called(nn.Module):
    """A module whose tensors are its inputs, whatever structure its own inputs have."""

    def __init__(self, called: nn.Module, function: Callable[..., Any]) -> None:
        super().__init__()
        self.called = called
        self._function = function

    def forward(self, *tensors: Tensor) -> Any:
        """Call the module."""
        return self.calling(self.called, *tensors)

    def calling(self, what: Callable[..., Any], *tensors: Any) -> Any:
        """Call something like the module, with anything instead of tensors."""
        return self._function(what, *tensors)


def _call(called: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    leaves, spec = pytree.tree_flatten((args, kwargs))
    places = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor)]

    def of(what: Any, *tensors: Tensor) -> Any:
        given = list(leaves)
        for place, tensor in zip(places, tensors, strict=True):
            given[place] = tensor
        args, kwargs = pytree.tree_unflatten(given, spec)
        return what(*args, **kwargs)

    def function(*tensors: Tensor) -> Any:
        return of(called, *tensors)

    tensors = [leaves[place].detach() for place in places]
    return Call(Called(called, of) if isinstance(called, nn.Module) else function, tensors)
