"""Saves the graphs of a case, has the files called elsewhere, and compares the results."""

from __future__ import annotations

import copy
import tempfile
import warnings
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils import _pytree as pytree

from conformance.comparing import filling_fresh_memory, unlike
from conformance.run import prepare
from conformance.saved.formats import FORMATS, Format
from conformance.saved.graphs import OPERATOR_WAYS, Saveable, graphs
from conformance.saved.loading import Loader
from lazyfx.errors import LazyfxError

# "no value": two calls of the graph itself differ under one seed, or raise. "fault": saving raised
# something other than a refusal.
Outcome = Literal["same", "refused", "wrong", "fault", "slow", "no value", "no graph"]
BAD = ("wrong", "fault", "slow")
_LONGEST_NOTE = 600
# What stands for a function that torch defines inside another one is written into the file.
_OUR_FUNCTION = ("lazyfx_shared_wire_targets_canonical_callables_", "saved_graph_")


@dataclass(frozen=True)
class Finding:
    """What became of one graph in one format.

    Attributes:
        case: Name of the case.
        graph: Which of its graphs; "" if none could be tried.
        format: Of `FORMATS`; "" if none could be tried.
        outcome: What happened.
        note: The error, or what differs.
    """

    case: str
    graph: str
    format: str
    outcome: str
    note: str = ""


@dataclass(frozen=True)
class Saving:
    """The work of `conformance.processes`.

    Attributes:
        seconds: Time limit per case.
        formats: Of `FORMATS`.
        ways: How operators and modules are captured.
    """

    seconds: float
    formats: Sequence[str] = tuple(FORMATS)
    ways: Sequence[str] = OPERATOR_WAYS

    @contextmanager
    def trying(self) -> Iterator[Any]:
        """A function that returns the findings of a case."""
        prepare()
        with Loader(seconds=int(self.seconds)) as loader:
            yield lambda name: [*findings(name, loader, self.formats, self.ways)]

    def failed(self, name: str, outcome: str, note: str) -> Finding:
        """The finding of a case that was not tried to its end."""
        return Finding(name, "", "", outcome, note[:_LONGEST_NOTE])


def findings(
    name: str,
    loader: Loader,
    formats: Collection[str] = tuple(FORMATS),
    ways: Collection[str] = OPERATOR_WAYS,
) -> Iterator[Finding]:
    """The findings of a case, for each of its graphs and each format.

    Args:
        name: Name of the case.
        loader: Loads and calls the files.
        formats: Of `FORMATS`.
        ways: How operators and modules are captured.
    """
    for graph in graphs(name, ways):
        if graph.build is None:
            yield Finding(name, graph.label, "", "no graph", graph.note[:_LONGEST_NOTE])
            continue
        with tempfile.TemporaryDirectory(prefix="lazyfx-saved-") as folder:
            tried = Trial(graph, Path(folder))
            if not tried.repeats:
                yield Finding(name, graph.label, "", "no value")
                continue
            for each in formats:
                outcome, note = tried.outcome(FORMATS[each], loader)
                yield Finding(name, graph.label, each, outcome, note[:_LONGEST_NOTE])


class Trial:
    """One graph: what two calls of it give here, to compare with what they give elsewhere.

    Args:
        graph: The graph and its inputs.
        folder: Where it is saved.
        calls: What is called here; a copy of the graph by default.

    Attributes:
        repeats: Whether the graph has a value to compare with.
    """

    def __init__(self, graph: Saveable, folder: Path, calls: nn.Module | None = None) -> None:
        assert graph.build is not None
        self._build = graph.build
        self._path = folder / "saved"
        torch.save((graph.args, graph.kwargs or {}), self._inputs)
        try:
            self._calls = self._called(calls)
            self.repeats = not unlike(self._calls, self._called(calls))
        except Exception:  # noqa: BLE001 - torch raises errors of every kind
            self.repeats = False

    @property
    def _inputs(self) -> Path:
        return self._path.with_suffix(".inputs")

    def _called(self, calls: nn.Module | None) -> list[Any]:
        here = copy.deepcopy(self._build() if calls is None else calls)
        results = []
        for seed in range(2):
            # Written a moment ago.
            args, kwargs = torch.load(self._inputs, weights_only=False)
            torch.manual_seed(seed)
            with torch.no_grad(), warnings.catch_warnings(), filling_fresh_memory():
                warnings.simplefilter("ignore")
                results.append((here(*args, **kwargs), args, kwargs))
        return results

    def outcome(self, kind: Format, loader: Loader) -> tuple[Outcome, str]:
        """Save it, have it called elsewhere, and compare."""
        path = self._path.with_suffix(kind.suffix)
        module = self._build()
        state = list(module.state_dict())
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.save(module, path)
        except LazyfxError as error:
            return "refused", str(error)
        except Exception as error:  # noqa: BLE001 - that is what is looked for
            return "fault", f"{type(error).__name__}: {error}"
        found = loader.call(path, kind.imports)
        if isinstance(found, str):
            return "wrong", found
        difference = self._difference(found["calls"], kind)
        if kind.structured and not difference:
            if found["code"] != module.code.replace(*_OUR_FUNCTION):
                difference = "another code"
            elif found["state"] != state:
                difference = f"another state: {found['state']}"
        return ("wrong", difference) if difference else ("same", "")

    def _difference(self, found: Sequence[Any], kind: Format) -> str:
        for number, (one, other) in enumerate(zip(found, self._calls, strict=True)):
            sides = [one, other] if kind.structured else [_leaves(one), _leaves(other)]
            if reason := unlike(*sides):
                return f"call {number + 1}: {reason}"
        return ""


def _leaves(call: tuple[Any, ...]) -> tuple[Any, ...]:
    result, *written = call
    return (pytree.tree_leaves(result), *written)
