"""Sends the graphs of one case through a server, and compares the results."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.fx import GraphModule

import lazyfx
from conformance.captures import Captured, captured
from conformance.cases import DTYPES, Case, modules, operators
from conformance.comparing import filling_fresh_memory, unlike
from lazyfx.errors import LazyfxError, ServerFaultError

# "carried": it passed, but has no value to compare with (uninitialized memory; torch itself
# raises). "fault": neither a result nor a refusal with a reason.
Outcome = Literal["same", "carried", "refused", "wrong", "fault", "no capture", "no sample", "slow"]
BAD: tuple[Outcome, ...] = ("wrong", "fault", "slow")

# No passes: only the wire and the server's checks. And the passes that rewrite most.
PIPELINES: tuple[tuple[str, ...], ...] = ((), ("inference",))
# Tolerance for different rounding: folded weights, reordered sums.
_RTOL, _ATOL = 1e-3, 1e-4
_LONGEST_NOTE = 600


@dataclass(frozen=True)
class Finding:
    """The result for one graph.

    Attributes:
        case: Name of the entry in torch's database.
        way: How it was captured.
        call: Which of the case's calls.
        passes: The passes that ran over it; "" for the wire and the checks alone.
        outcome: What happened.
        note: The error, or what differs.
    """

    case: str
    way: str
    call: int
    passes: str
    outcome: Outcome
    note: str = ""


def prepare() -> None:
    """Make a process ready for captures, which warn and log at length."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Asked:
    """How cases are tried: the work of `conformance.processes`.

    Attributes:
        address: Address of the server.
        ways: Captures.
        calls: Maximum calls per case.
        seconds: Time limit per case.
        dtypes: The first of these that a case supports is used.
    """

    address: str
    ways: Sequence[str]
    calls: int
    seconds: float
    dtypes: Sequence[str] = DTYPES

    @contextmanager
    def trying(self) -> Iterator[Callable[[str], list[Finding]]]:
        """A function that returns the findings of a case."""
        prepare()
        cases = {case.name: case for case in every_case()}
        with lazyfx.connect(self.address) as client:
            yield lambda name: [*findings(cases[name], self.ways, client, self.calls, self.dtypes)]

    def failed(self, name: str, outcome: str, note: str) -> Finding:
        """The finding of a case that was not tried to its end."""
        return Finding(name, "", 0, "", outcome, note)


def every_case() -> list[Case]:
    """The cases of both databases."""
    return [*operators(), *modules()]


def findings(
    case: Case,
    ways: Sequence[str],
    client: lazyfx.Client,
    at_most: int = 1,
    dtypes: Sequence[str] = DTYPES,
) -> Iterator[Finding]:
    """The findings of a case for each way of capturing.

    Args:
        case: An entry of one of torch's databases.
        ways: Of `conformance.captures.WAYS`.
        client: A client of the server.
        at_most: Maximum number of its calls to try.
        dtypes: The first of these that the case supports is used.
    """
    calls = case.calls(at_most, dtypes)
    if not calls:
        yield Finding(case.name, "", 0, "", "no sample")
    for number, call in enumerate(calls):
        for way in ways:
            capture = captured(way, call)
            if capture is None:
                yield Finding(case.name, way, number, "", "no capture")
                continue
            expected = _expected(capture)
            for passes in PIPELINES:
                outcome, note = _through(client, capture, passes, expected)
                yield Finding(case.name, way, number, ",".join(passes), outcome, note)
                if outcome == "refused":
                    break


def _expected(capture: Captured) -> list[Any] | None:
    """The result of the graph here; None if it raises or is not deterministic."""
    results = []
    for _ in range(2):
        fresh = copy.deepcopy(capture.module)
        try:
            results.append(_called(fresh, fresh, capture.inputs))
        except Exception:  # noqa: BLE001 - torch raises errors of every kind
            return None
    return None if unlike(*results) else results[0]


def _through(
    client: lazyfx.Client,
    capture: Captured,
    passes: Sequence[str],
    expected: list[Any] | None,
) -> tuple[Outcome, str]:
    fresh = copy.deepcopy(capture.module)
    try:
        compiled = client.compile(fresh, list(passes)).graph_module()
    except ServerFaultError as error:
        return "fault", _words(error)
    except LazyfxError as error:
        return "refused", _words(error)
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return "fault", _words(error)
    if expected is None:
        return "carried", ""
    try:
        found = _called(compiled, fresh, capture.inputs)
    except Exception as error:  # noqa: BLE001 - it runs here
        return "wrong", f"does not run: {_words(error)}"
    tolerances = (_RTOL, _ATOL) if passes else (None, None)
    difference = unlike(found, expected, *tolerances)
    return ("wrong", difference[:_LONGEST_NOTE]) if difference else ("same", "")


def _called(function: Callable[..., Any], owner: GraphModule, inputs: list[Any]) -> list[Any]:
    """The results of a call, and what it left in its inputs and in the owner's state."""
    given = copy.deepcopy(inputs)
    torch.manual_seed(0)
    with warnings.catch_warnings(), filling_fresh_memory():
        warnings.simplefilter("ignore")
        results = function(*given)
    return [results, given, list(owner.state_dict().values())]


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_LONGEST_NOTE]
