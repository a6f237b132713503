"""Source that a server generated is held against the graph that the client has."""

from __future__ import annotations

import math
import operator

import pytest
import torch
from hostile.test_written import MODULES, in_place

from lazyfx.shared.source import SourceMismatchError, check_generated
from lazyfx.shared.source.assembly import generate


def odd() -> torch.fx.GraphModule:
    """Calls of what is imported under a name of its own, and of what cannot be imported."""
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    y = graph.call_function(torch.Tensor.relu_, (x,))
    z = graph.call_function(math.sqrt, (2.0,))
    graph.output((y, graph.call_function(operator.truth, (z,))))
    return torch.fx.GraphModule(torch.nn.Module(), graph)


ALL = {**MODULES, "odd": odd}


@pytest.mark.parametrize("make", ALL.values(), ids=ALL)
def test_source_of_a_graph_is_taken_and_its_imports_are_written_again(make) -> None:  # type: ignore[no-untyped-def]
    module = make()
    source = generate(module)
    assert check_generated(source.code, source.import_block, module.graph) == source.import_block


BLOCKS = {
    "another module": "import os",
    "from another module": "from os import system as torch_Tensor_relu_",
    "a statement": "import torch; import os",
    "a call": "import torch\n__import__('os').system('true')",
    "a redefinition": "import torch\ntorch = None",
    "another builtin": "from os import environ as device",
    "a wrapped name": "import torch\nimport os\nf = os.system\ntorch.fx.wrap('f')",
    "no end": "import torch\n(",
    "deep": "(" * 5000,
    "relative": "from . import torch",
    "star": "from torch import *",
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_another_import_block_is_refused(block: str) -> None:
    module = odd()
    source = generate(module)
    with pytest.raises(SourceMismatchError):
        check_generated(source.code, f"{source.import_block}\n{block}", module.graph)
    with pytest.raises(SourceMismatchError):
        check_generated(source.code, block, module.graph)


def test_an_import_under_the_name_of_another_is_refused() -> None:
    module = odd()
    source = generate(module)
    swapped = source.import_block.replace(
        "from math import sqrt as math_sqrt", "from _operator import truth as math_sqrt"
    )
    assert swapped != source.import_block
    with pytest.raises(SourceMismatchError):
        check_generated(source.code, swapped, module.graph)


CODES = {
    "a comment that names an encoding": "# -*- coding: utf-7 -*-\n{}",
    "a comment": "{}\n# +AAo-",
    "a statement before": "import os\n{}",
    "a statement behind": "{}\nimport os",
    "a decorator": "@print\n{}",
    "no Python": "{}\n(",
    "deep": "{}" + "(" * 5000,
    "a NUL": "{}\0",
}


@pytest.mark.parametrize("template", CODES.values(), ids=CODES)
def test_other_code_is_refused(template: str) -> None:
    module = in_place()
    source = generate(module)
    with pytest.raises(SourceMismatchError):
        check_generated(template.format(source.code.strip("\n")), source.import_block, module.graph)


def test_arguments_in_another_order_are_refused() -> None:
    class Two(torch.nn.Module):
        def forward(self, first, *, second):  # type: ignore[no-untyped-def]
            return first - second

    ones = torch.ones(2)
    module = torch.export.export(Two(), (ones,), {"second": ones}).module(check_guards=False)
    source = generate(module)  # type: ignore[arg-type]
    assert check_generated(source.code, source.import_block, module.graph)  # type: ignore[arg-type]
    for old, new in (
        ("forward(self, first, second)", "forward(self, second, first)"),
        ("([first], {'second':second})", "([second], {'second':first})"),
    ):
        assert old in source.code, source.code
        with pytest.raises(SourceMismatchError):
            check_generated(source.code.replace(old, new), source.import_block, module.graph)  # type: ignore[arg-type]
