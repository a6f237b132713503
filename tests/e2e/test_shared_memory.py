"""Attributes that share memory: whatever the passes, a write to one is seen through the others."""

from __future__ import annotations

import contextlib
import copy
import pickle
import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from passes import overlapping
from passes.library import LIBRARY
from passes.sharing import MODELS, Part, X, calls, symbolic
from torch import Tensor, nn

import lazyfx
from lazyfx.errors import LazyfxError, UnsupportedGraphError
from lazyfx_server.passes import Registry

pytestmark = pytest.mark.long

SIMPLIFYING = (
    "functionalize,decompose,common_subexpression_elimination,constant_fold,dead_code_elimination"
)
OPTIONS = {
    "partition_by_support": '{supported=["add","mul","sum"]}',
    "quantize_weights": "{min_elements=1}",
    "split_module": "{max_nodes=1}",
}


def exported(model: nn.Module) -> Any:
    return torch.export.export(model, (X,), strict=False)


def singles() -> list[str]:
    given = {"partition_min_cut", "replace_pattern"}  # need a joint graph, or patterns
    names = sorted({*Registry().names(), *LIBRARY} - given - {"analyze", "shape_propagation"})
    return [name + OPTIONS.get(name, "") for name in names]


FEW = [
    "functionalize",
    "inference",
    SIMPLIFYING,
    "split_module{max_nodes=1},common_subexpression_elimination,constant_fold,"
    "dead_code_elimination",
]


@pytest.mark.parametrize("capture", [symbolic, exported])
@pytest.mark.parametrize("make", MODELS)
def test_any_pass_keeps_what_two_calls_return(
    client: lazyfx.Client, make: Callable[[], nn.Module], capture: Callable[..., Any]
) -> None:
    traced = capture(make())
    expected = calls(traced.module() if capture is exported else traced)
    wrong = []
    for pipeline in [*FEW, *(singles() if capture is symbolic else ())]:
        try:
            found = calls(client.compile(capture(make()), pipeline))
            torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
        except LazyfxError as error:
            wrong.append(f"{pipeline}: {error}")
        except AssertionError as error:
            wrong.append(f"{pipeline}: {str(error).splitlines()[0]}")
    assert not wrong


@pytest.mark.parametrize("name", ["functionalize", "decompose"])
def test_a_graph_that_writes_shared_attributes_is_traced_again(
    client: lazyfx.Client, name: str
) -> None:
    assert client.compile(exported(Part()), name).report.passes[0].changed


def test_shared_memory_that_nothing_writes_does_not_matter(client: lazyfx.Client) -> None:
    class Read(Part):
        def forward(self, x: Tensor) -> Any:
            return self.whole.sum() + self.part * x.sum()

    report = client.compile(exported(Read()), "decompose").report
    assert report.passes[0].changed


def loaded(handle: lazyfx.RemoteModule, model: nn.Module, folder: Path) -> dict[str, nn.Module]:
    """What the files of a handle contain; each has tensors of its own."""
    handle.save_pickle(folder / "m.pkl")
    handle.save_code(folder / "m.py")
    found = {
        "handle": handle.graph_module(),
        "pickle": pickle.loads((folder / "m.pkl").read_bytes()),
        "code": runpy.run_path(str(folder / "m.py"))["Module"](model),
    }
    with contextlib.suppress(UnsupportedGraphError):
        handle.save_torchscript(folder / "m.ts")
        found["torchscript"] = torch.jit.load(folder / "m.ts")
    with contextlib.suppress(UnsupportedGraphError):
        handle.save_exported_program(folder / "m.pt2")
        found["exported"] = torch.export.load(folder / "m.pt2").module()
    return found


@pytest.mark.parametrize("pipeline", ["", "functionalize", "decompose"])
@pytest.mark.parametrize("make", overlapping.MODELS)
def test_inputs_in_one_memory_are_seen_by_files_too(
    client: lazyfx.Client, make: Callable[[], nn.Module], pipeline: str, tmp_path: Path
) -> None:
    model = make()
    handle = client.compile(overlapping.symbolic(make()), pipeline)
    wrong = []
    for name, module in loaded(handle, model, tmp_path).items():
        for how in overlapping.HOW:
            script = name == "torchscript"  # has no copies
            fresh = torch.jit.load(tmp_path / "m.ts") if script else copy.deepcopy(module)
            expected = overlapping.outcome(make(), how)
            try:
                torch.testing.assert_close(overlapping.outcome(fresh, how), expected)
            except (AssertionError, RuntimeError) as error:
                wrong.append(f"{name}, {how}: {str(error).splitlines()[0]}")
    assert not wrong
