"""Compiles the calls of one entry through a server, and compares them with the same calls here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from conformance.comparing import filling_fresh_memory, unlike
from conformance.remote.entries import Entry, entries, fresh
from conformance.remote.probing import Probe
from conformance.run import prepare

# "carried": there is nothing to compare with, as the call draws from elsewhere. "torch": the call
# raises without lazyfx too. "fault": it raises only with it.
Outcome = Literal["same", "carried", "wrong", "torch", "fault", "no sample", "slow"]
BAD: tuple[Outcome, ...] = ("wrong", "fault", "slow")

WAYS = ("infer", "train", "infer_dynamic", "train_dynamic")
_LONGEST_NOTE = 600


@dataclass(frozen=True)
class Finding:
    """What became of one call.

    Attributes:
        case: Name of the entry.
        way: One of `WAYS`.
        call: Which of the entry's calls.
        outcome: Whether it computes what it computes here.
        graphs: For each graph that dynamo captured: why it stays local, "" if it does not.
        note: The error, or what differs.
    """

    case: str
    way: str
    call: int
    outcome: Outcome
    graphs: Sequence[str] = ()
    note: str = ""


@dataclass(frozen=True)
class Counting:
    """How entries are tried: the work of `conformance.processes`.

    Attributes:
        address: Address of the server.
        ways: Of `WAYS`.
        calls: Maximum calls per entry.
        compile: "eager" or "inductor".
        seconds: Time limit per entry.
    """

    address: str
    ways: Sequence[str]
    calls: int
    compile: str
    seconds: float

    @contextmanager
    def trying(self) -> Iterator[Callable[[str], list[Finding]]]:
        """A function that returns the findings of an entry."""
        prepare()
        yield lambda name: [*findings(name, self)]

    def failed(self, name: str, outcome: str, note: str) -> Finding:
        """The finding of an entry that was not tried to its end."""
        return Finding(name, "", 0, outcome, (), note)  # type: ignore[arg-type]


def findings(name: str, counting: Counting) -> Iterator[Finding]:
    """Try each call of an entry in each way."""
    for way in counting.ways:
        try:
            made = entries(name, counting.calls, train=way.startswith("train"))
        except Exception as error:  # noqa: BLE001 - some need what is not here
            yield Finding(name, way, 0, "no sample", (), _words(error))
            continue
        if not made:
            yield Finding(name, way, 0, "no sample")
        for number, entry in enumerate(made):
            outcome, graphs, note = _try(entry, counting, dynamic=way.endswith("dynamic"))
            yield Finding(name, way, number, outcome, graphs, note[:_LONGEST_NOTE])


def _try(entry: Entry, counting: Counting, *, dynamic: bool) -> tuple[Outcome, list[str], str]:
    """The outcome of one call, its graphs, and a note."""
    try:
        expected, again = _step(entry), _step(entry)
    except Exception as error:  # noqa: BLE001 - torch raises errors of every kind
        return "torch", [], _words(error)
    probe = Probe(counting.address, counting.compile)
    exact = counting.compile == "eager"
    tolerances = (None, None) if exact else (1e-3, 1e-4)
    try:
        found = _step(entry, backend=probe, dynamic=dynamic)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        if _raises(entry, dynamic=dynamic):
            return "torch", probe.graphs, _words(error)
        return "fault", probe.graphs, _words(error)
    if unlike(expected, again):
        return "carried", probe.graphs, ""
    difference = unlike(found, expected, *tolerances)
    if difference and unlike(
        found, _step(entry, backend="aot_eager" if exact else "inductor", dynamic=dynamic)
    ):
        return "wrong", probe.graphs, difference
    return "same", probe.graphs, ""


def _raises(entry: Entry, *, dynamic: bool) -> bool:
    """Whether torch.compile raises without lazyfx too."""
    try:
        _step(entry, backend="aot_eager", dynamic=dynamic)
    except Exception:  # noqa: BLE001 - torch raises errors of every kind
        return True
    return False


def _step(entry: Entry, *, backend: Any = None, dynamic: bool = False) -> list[Any]:
    """What a call returns and leaves: results, arguments, state, and gradients."""
    own = fresh(entry)
    function = own.function
    torch.manual_seed(0)
    if backend is not None:
        torch._dynamo.reset()
        function = torch.compile(function, backend=backend, dynamic=dynamic or False)
    with filling_fresh_memory(), torch.set_grad_enabled(entry.train):
        results = function(*own.args, **own.kwargs)
        gradients = _gradients(results, own) if entry.train else []
    state = [*own.function.state_dict().values()] if isinstance(own.function, nn.Module) else []
    return [_plain(results), _plain([own.args, own.kwargs]), state, gradients]


def _gradients(results: Any, entry: Entry) -> list[Any]:
    leaves = [
        each
        for each in pytree.tree_leaves((entry.args, entry.kwargs))
        if isinstance(each, torch.Tensor) and each.requires_grad
    ]
    if isinstance(entry.function, nn.Module):
        leaves += [each for each in entry.function.parameters() if each.requires_grad]
    roots = [
        each
        for each in pytree.tree_leaves(_plain(results, detached=False))
        if isinstance(each, torch.Tensor) and each.requires_grad and each.layout is torch.strided
    ]
    if not roots or not leaves:
        return []
    torch.manual_seed(1)
    weights = [torch.randn(each.shape).to(each.dtype) for each in roots]
    return list(torch.autograd.grad(roots, leaves, weights, allow_unused=True))


def _plain(value: Any, *, detached: bool = True) -> Any:
    """Leaves of a structure, which may be of a model's own types."""
    if hasattr(value, "to_tuple"):
        value = value.to_tuple()
    leaves = pytree.tree_leaves(value)
    return [
        each.detach() if detached and isinstance(each, torch.Tensor) else each for each in leaves
    ]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_NOTE]
