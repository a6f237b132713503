"""Groups that run until the graph is stable, budgets, and what forces code."""

import signal

import pytest
from passes.sample_passes import Failing, Plain, Recompiling, Shrinking, chain, traced

from lazyfx.shared.pass_specs import PassSpec, spec_of, until_stable
from lazyfx.shared.pass_spelling import parse, spell
from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import PassError, PassLimits, Pipeline, Registry, UntilStable
from lazyfx_server.passes.pass_requests import pipeline_of


def test_until_stable_runs_until_nothing_changes() -> None:
    ledger = RecompileLedger()
    group = UntilStable((Shrinking(), Recompiling()), at_most=8)
    outcome = Pipeline((Recompiling(), group, Recompiling(times=2))).run(chain(3), ledger)
    assert [(r.name, r.runs, r.requested, r.changed) for r in outcome.runs] == [
        ("recompiling", 1, 1, False),
        ("shrinking", 4, 3, True),
        ("recompiling", 4, 4, False),
        ("recompiling", 1, 2, False),
    ]
    assert (outcome.runs[1].nodes_before, outcome.runs[1].nodes_after) == (5, 2)
    assert outcome.runs[1].note == "one less; one less; one less"
    assert sum(r.requested for r in outcome.runs) == ledger.requested() == 10
    assert ledger.performed() == 0


def test_until_stable_ends_and_says_so() -> None:
    outcome = Pipeline((UntilStable((Shrinking(forever=True),), at_most=3),)).run(
        chain(1), RecompileLedger()
    )
    assert outcome.runs[0].runs == 3
    assert outcome.runs[0].note.endswith("not stable after 3 rounds")


def test_groups_have_a_spelling_and_a_fingerprint() -> None:
    group = Pipeline((Plain(), UntilStable((Shrinking(), Recompiling(times=2)), at_most=4)))
    assert group.spelling == "plain,until_stable{at_most=4}(shrinking,recompiling{times=2})"
    assert spell(parse(group.spelling)) == group.spelling
    flat = Pipeline((Plain(), Shrinking(), Recompiling(times=2)))
    others = [
        flat,
        Pipeline((UntilStable((Plain(), Shrinking(), Recompiling(times=2)), at_most=4),)),
        Pipeline((Plain(), UntilStable((Shrinking(), Recompiling(times=2)), at_most=5))),
    ]
    assert len({group.fingerprint, *(p.fingerprint for p in others)}) == 4
    assert group.passes == flat.passes


def test_a_pass_that_takes_too_long_is_stopped_and_named() -> None:
    limits = PassLimits(max_pass_seconds=0.05)
    with pytest.raises(PassError, match=r"took longer than 0\.05 s") as caught:
        Pipeline((Plain(), Shrinking(seconds=30.0))).run(chain(3), RecompileLedger(), limits)
    error = caught.value
    assert (error.kind, error.field, error.before) == ("limit", "passes[1]", ("plain",))
    assert error.node == "x"
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)


def test_errors_inside_a_group_name_its_place() -> None:
    with pytest.raises(PassError) as caught:
        Pipeline((Plain(), UntilStable((Recompiling(), Failing())))).run(
            chain(2), RecompileLedger()
        )
    assert caught.value.field == "passes[1].passes[1]"
    assert caught.value.before == ("plain", "recompiling")


def test_the_report_names_a_pass_that_forces_code() -> None:
    ledger = RecompileLedger()
    outcome = Pipeline((Recompiling(call=True),)).run(traced(), ledger)
    (row,) = outcome.runs
    assert row.performed == len(row.forced) == 1
    assert row.forced[0].where.startswith("sample_passes.py:")
    assert row.forced[0].where.endswith("in run")


def test_groups_of_requests() -> None:
    registry = Registry()
    spec = until_stable("dead_code_elimination", "common_subexpression_elimination", at_most=3)
    pipeline = pipeline_of(registry, [spec.message()])
    assert pipeline.spelling == spell([spec.spelled()])
    assert [spec_of(each).message() for each in parse(pipeline.spelling)] == [spec.message()]
    wrong = [
        (until_stable(at_most=3), "passes[0].passes"),
        (until_stable("dead_code_elimination", at_most=0), "passes[0].options.at_most"),
        (until_stable("dead_code_elimination", at_most=1000), "passes[0].options.at_most"),
        (PassSpec("until_stable", {"x": 1}, passes=spec.passes), "passes[0].options"),
        (until_stable(PassSpec("no_such_pass")), "passes[0].passes[0].name"),
        (until_stable(until_stable("dead_code_elimination")), "passes[0].passes[0].passes"),
        (PassSpec("dead_code_elimination", passes=spec.passes), "passes[0].passes"),
    ]
    for refused, field in wrong:
        with pytest.raises(PassError) as caught:
            pipeline_of(registry, [refused.message()])
        assert caught.value.field == field
