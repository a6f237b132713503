"""Every pass over real models in every capture: same results, no code generated."""

import pytest
from passes.running import assert_same, decoded, run
from wire.captures import Capture

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pipeline, Registry

registry = Registry()

# Passes without rewrites, in the order in which people run them.
DEFAULT = (
    "remove_dropout",
    "constant_fold",
    "fuse_conv_bn",
    "normalize_arguments",
    "common_subexpression_elimination",
    "shape_propagation",
    "dead_code_elimination",
)


@pytest.mark.parametrize("name", DEFAULT)
def test_a_pass_keeps_the_results_and_says_truly_what_it_changed(
    capture: Capture, name: str
) -> None:
    ran = run(capture.module, registry.create(name), registry.create(name))
    first, second = ran.runs
    if name != "shape_propagation":
        assert first.changed == (_text(ran.module) != _text(capture.module))
        if first.changed:
            assert_same(capture.module, ran.module, *capture.args, **capture.kwargs)
    assert not second.changed
    assert second.nodes_before == second.nodes_after


def test_the_pipeline_stays_lazy_and_keeps_the_results(capture: Capture) -> None:
    ran = run(capture.module, *(registry.create(name) for name in DEFAULT))
    assert ran.ledger.requested() > 0
    assert ran.ledger.performed() == 0
    assert_same(capture.module, ran.module, *capture.args, **capture.kwargs)


def test_the_pipeline_stays_lazy_on_decoded_graphs(capture: Capture) -> None:
    ledger = RecompileLedger()
    pipeline = Pipeline(tuple(registry.create(name) for name in DEFAULT))
    module = decoded(capture.module)
    before = len(module.graph.nodes)
    outcome = pipeline.run(module, ledger)
    outcome.module.graph.lint()
    assert ledger.performed() == 0
    assert outcome.runs[0].nodes_before == before


def _text(module: object) -> str:
    return "\n".join(
        f"{n.op} {n.target} {n.args} {dict(n.kwargs)}"
        for n in module.graph.nodes  # type: ignore[attr-defined]
    )
