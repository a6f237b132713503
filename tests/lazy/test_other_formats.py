"""ExportedPrograms and TorchScript compute what their graph computes, or are refused."""

from __future__ import annotations

import copy
import io
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from elsewhere import unlike
from test_pickling import graphs
from torch import nn
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.passes.fake_tensor_prop import FakeTensorProp
from torch.utils import _pytree as pytree

from lazyfx import wire
from lazyfx.errors import UnsupportedGraphError
from lazyfx.exporting import export_module
from lazyfx.torchscript import eager_copy, script_module


def through_the_wire(module: GraphModule) -> GraphModule:
    encoded = wire.encode(module)

    def bind(graph: int, attribute: int, _row: Any) -> torch.Tensor:
        return encoded.attributes[graph][attribute]  # type: ignore[return-value]

    def convention(root: torch.fx.Graph) -> None:
        root.set_codegen(copy.copy(module.graph._codegen))

    return wire.decode(encoded.body, encoded.presentation, bind=bind, on_root=convention)


def exported(module: GraphModule) -> Callable[..., Any]:
    return torch.export.load(io.BytesIO(export_module(module))).module()


def scripted(module: GraphModule) -> Callable[..., Any]:
    return torch.jit.load(io.BytesIO(script_module(eager_copy(module))))  # type: ignore[no-any-return]


# What TorchScript has no words for.
NO_SCRIPT = {
    "autocast_dynamo", "autocast_export", "branch_dynamo", "branch_export", "item", "loop",
    "no_grad_dynamo", "no_grad_export", "scan", "vmap",
}  # fmt: skip


@pytest.mark.parametrize(("save", "refused"), [(exported, set()), (scripted, NO_SCRIPT)])
def test_what_is_loaded_computes_what_was_saved(
    save: Callable[..., Any], refused: set[str]
) -> None:
    different, missing = {}, set()
    for name, (module, args) in graphs().items():
        if not any("val" in n.meta or "example_value" in n.meta for n in module.graph.nodes):
            FakeTensorProp(module, FakeTensorMode(allow_non_fake_inputs=True)).propagate(*args)
        sent = through_the_wire(module)
        here = copy.deepcopy(sent)
        try:
            loaded = save(sent)
        except UnsupportedGraphError:
            missing.add(name)
            continue
        for seed in range(2):
            results = []
            for called in (loaded, here):
                given = copy.deepcopy(args)
                torch.manual_seed(seed)
                results.append((pytree.tree_leaves(called(*given)), given))
            if reason := unlike(*results):
                different[name, seed] = reason
    assert (different, missing) == ({}, refused)


IN_PLACE = ("iadd", "iand", "ifloordiv", "ilshift", "imod", "imul", "ior", "ipow", "irshift",
            "isub", "itruediv", "ixor")  # fmt: skip


@pytest.mark.parametrize("name", IN_PLACE)
@pytest.mark.parametrize("scalar", [False, True])
def test_operators_that_write_do_so_in_torchscript(name: str, scalar: bool) -> None:
    graph = torch.fx.Graph()
    a, b = graph.placeholder("a"), graph.placeholder("b")
    graph.output(graph.call_function(getattr(operator, name), (a, 2 if scalar else b)))
    module = GraphModule(nn.Module(), graph)
    one = torch.tensor([5, 6, 7], dtype=torch.float32 if name == "itruediv" else torch.int64)
    given, other = [(one.clone(), torch.tensor([3, 1, 2])) for _ in range(2)]
    expected = module(*given)
    found = scripted(module)(*other)
    assert unlike((found, other), (expected, given)) == ""
    assert not torch.equal(other[0], one)
