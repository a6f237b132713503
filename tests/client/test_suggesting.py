"""Suggestions for misspelled passes, pipelines and backend options."""

from __future__ import annotations

from dataclasses import fields

import pytest
import torch._inductor.config

from lazyfx.backend.options import BackendOptions, read_options
from lazyfx.shared.printable import shown
from lazyfx.shared.suggesting import SHORT_NAMES, closest, did_you_mean
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx_server.passes.errors import PassError
from lazyfx_server.passes.named_pipelines import NamedPipelines
from lazyfx_server.passes.registry import Registry

PASSES = Registry().names()


def test_every_short_name_stands_for_a_pass_and_is_not_one() -> None:
    assert set(SHORT_NAMES.values()) <= set(PASSES)
    assert not set(SHORT_NAMES) & set(PASSES)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("cse", "common_subexpression_elimination"),
        ("DCE", "dead_code_elimination"),
        ("fold", "constant_fold"),
        ("constant-folding", "constant_fold"),
        ("dead_code_eliminaton", "dead_code_elimination"),
        ("infer", "inference"),
        ("trainning", "training"),
        ("until_stabel", "until_stable"),
        # Something added at an end.
        ("cse_typo", "common_subexpression_elimination"),
        ("cse_pass", "common_subexpression_elimination"),
        ("my_cse", "common_subexpression_elimination"),
        ("dce2", "dead_code_elimination"),
        ("run-DCE", "dead_code_elimination"),
        ("csee", "common_subexpression_elimination"),
        ("fold_conv_bn", "fuse_conv_bn"),
        ("constant_fold_x", "constant_fold"),
        ("inference_pipeline", "inference"),
        # Other separators, none, another order.
        ("constant.fold", "constant_fold"),
        ("constant folding", "constant_fold"),
        ("constantfold", "constant_fold"),
        ("fold-constants", "constant_fold"),
        ("foldConstants", "constant_fold"),
        ("ConstantFolding", "constant_fold"),
        ("deadCodeElimination", "dead_code_elimination"),
        ("DeadCodeElim", "dead_code_elimination"),
        ("dropout_removal", "remove_dropout"),
        ("module_split", "split_module"),
    ],
)
def test_a_pass_or_pipeline_is_suggested(given: str, meant: str) -> None:
    named = NamedPipelines(Registry())
    with pytest.raises(PassError, match=f"did you mean '{meant}'") as refused:
        named.expand([pb.PassSpec(name="inference"), pb.PassSpec(name=given)])
    assert refused.value.field == "passes[1].name"


def test_where_nothing_is_close_all_are_listed() -> None:
    assert did_you_mean("zzzzzz", PASSES).startswith("; known names: analyze, ")
    assert did_you_mean("x", ()) == "; there are none"
    assert did_you_mean("zzzzzz", [f"k{i}" for i in range(100)]).endswith(" and 60 more")


def test_a_long_text_is_not_compared_and_not_repeated() -> None:
    long = "a" * 10_000_000
    assert closest(long, PASSES, SHORT_NAMES) == ""
    assert len(shown(long)) < 100
    assert shown("\x1b[2J\n").isprintable()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("adress", "address"), ("on_eror", "on_error"), ("pases", "passes"), ("time_out", "timeout")],
)
def test_a_misspelled_option_of_the_backend_is_not_taken_for_a_setting_of_inductor(
    given: str, meant: str
) -> None:
    with pytest.raises(ValueError, match=f"options has no '{given}'; did you mean '{meant}'"):
        read_options({given: "x"})
    assert read_options({"epilogue-fusion": False}).inductor == {"epilogue_fusion": False}


def test_no_setting_of_inductor_is_taken_for_a_misspelling() -> None:
    for name in torch._inductor.config.get_config_copy():
        if name not in {field.name for field in fields(BackendOptions)}:
            assert read_options({name: 1}).inductor == {name: 1}
