"""A sample of torch's own tables of operators and modules through a running server."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
from servers import RunningServer

import lazyfx
from conformance import reasons
from conformance.captures import WAYS
from conformance.cases import modules, operators
from conformance.run import BAD, Finding, findings

pytestmark = pytest.mark.long

pytest.importorskip("expecttest", reason="torch's tables need it")

# A sample for CI: these places of the tables, and what was refused or wrong once, with as many
# calls as show it.
_EVERY_OPERATOR, _EVERY_MODULE = 140, 60
_ONCE = {
    "op linalg_det": 2,
    "op nn_functional_linear_cross_entropy_chunked": 1,
    "op quantile": 1,
    "op to_sparse": 2,
    "module nn_LinearCrossEntropyLoss": 1,
}


@pytest.fixture(scope="module")
def found(server: RunningServer) -> list[Finding]:
    chosen = [*operators(11, _EVERY_OPERATOR), *modules(4, _EVERY_MODULE)]
    chosen += [case for case in (*operators(), *modules()) if case.name in _ONCE]
    with lazyfx.connect(server.address) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [
            each
            for case in chosen
            for each in findings(case, tuple(WAYS), client, _ONCE.get(case.name, 1))
        ]


def test_a_sample_comes_through_and_computes_the_same(found: list[Finding]) -> None:
    assert [each for each in found if each.outcome in BAD] == []
    assert sum(each.outcome == "same" for each in found) > 30


def test_what_is_refused_of_the_sample_is_listed_with_its_reason(found: list[Finding]) -> None:
    assert reasons.unexplained(found, reasons.read()) == []


def test_a_refusal_that_is_not_listed_is_found() -> None:
    known = reasons.read()
    first = known[0]
    listed = Finding(first.names[0], first.ways[0], 0, "", "refused", f"no: {first.words}, alas")
    assert reasons.unexplained([listed], known) == []
    for other in (replace(listed, case="op abs"), replace(listed, note="another")):
        assert reasons.unexplained([other], known) == [other]
    assert reasons.outdated([], known) == known
