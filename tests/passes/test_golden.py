"""Each pass on a small graph: what goes in and what comes out, as text.

LAZYFX_WRITE_GOLDEN=1 rewrites the files; review the difference before you commit it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from passes.captures import dynamo
from passes.library import LIBRARY
from torch import nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.experimental.proxy_tensor import make_fx

from lazyfx_server.lazy import RecompileLedger
from lazyfx_server.passes import Pass, Pipeline, Registry
from lazyfx_server.passes.builtin import BUILTIN_PASSES

FOLDER = Path(__file__).parent / "golden"
_A, _B = torch.ones(2, 3), torch.ones(3, 3)


def _aten(function: Callable[..., object], *inputs: torch.Tensor) -> GraphModule:
    with torch.no_grad():
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


def _exported(model: nn.Module, *inputs: torch.Tensor) -> GraphModule:
    module = torch.export.export(model.eval(), inputs).module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def _write(x: torch.Tensor) -> torch.Tensor:
    y = x * 2
    y.add_(1)
    return y.relu()


def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    scores = torch.bmm(q, k.transpose(1, 2)) * 0.5
    return torch.bmm(torch.softmax(scores, -1), v)


def _joint(x: torch.Tensor, tangent: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    doubled = x * 2
    return doubled.sin(), tangent * doubled.cos() * 2


def _dynamo(function: Callable[[torch.Tensor], object], given: torch.Tensor) -> GraphModule:
    class Model(nn.Module):
        def forward(self, x: torch.Tensor) -> object:
            return function(x)

    return dynamo(Model(), {"x": given})[0]


class _Merging(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(3, 3), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.q(x) + self.k(x)


class _Constant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.arange(3.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.table * 2


_THREE = (torch.ones(1, 2, 4), torch.ones(1, 2, 4), torch.ones(1, 2, 4))
GRAPHS: dict[str, Callable[[], GraphModule]] = {
    "analyze": lambda: _aten(lambda a, b: torch.relu(a @ b), _A, _B),
    "batch_fusion": lambda: _aten(lambda a: torch.tanh(a + 1) * torch.tanh(a + 2), _A),
    "common_subexpression_elimination": lambda: symbolic_trace(
        lambda x: torch.relu(x) + torch.relu(x)
    ),
    "constant_fold": lambda: _exported(_Constant(), torch.ones(3)),
    "convert_dtype": lambda: _aten(lambda a, b: torch.relu(a @ b), _A, _B),
    "dead_code_elimination": lambda: symbolic_trace(lambda x: (x + 1, torch.relu(x))[1]),
    "decompose": lambda: _aten(lambda a, b: F.silu(a) - torch.addmm(a, a, b), _A, _B),
    "functionalize": lambda: _aten(_write, _A),
    "fuse_attention": lambda: _aten(_attention, *_THREE),
    "fuse_conv_bn": lambda: symbolic_trace(
        nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)).eval()
    ),
    "fuse_linear_bn": lambda: _exported(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), _A),
    "inductor_joint_graph": lambda: _aten(lambda a: a.view(2, 3) * torch.ones(3), _A),
    "inductor_post_grad": lambda: _aten(lambda a, b: torch.relu(a @ b + a), _A, _B),
    "inductor_pre_grad": lambda: _dynamo(lambda a: torch.cat(torch.split(a, 1)) + 1, _A),
    "merge_matmul": lambda: _exported(_Merging(), _A),
    "no_op_elimination": lambda: _aten(lambda a: torch.relu(a.reshape(2, 3) * 1), _A),
    "normalize_arguments": lambda: symbolic_trace(lambda x: torch.tril(x)),
    "partition_by_support": lambda: _aten(lambda a, b: torch.relu(a @ b) + 1, _A, _B),
    "partition_min_cut": lambda: _aten(_joint, _A, torch.zeros(2, 3)),
    "quantize_weights": lambda: symbolic_trace(nn.Linear(8, 8)),
    "reinplace": lambda: _aten(lambda a: torch.relu(a * 2) + 1, _A),
    "remove_dropout": lambda: symbolic_trace(nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval()),
    "remove_duplicate_casts": lambda: _aten(lambda a: a.bfloat16().float().bfloat16() + 1, _A),
    "replace_pattern": lambda: symbolic_trace(lambda x: torch.relu(torch.relu(x)) + 1),
    "shape_propagation": lambda: _aten(lambda a, b: torch.relu(a @ b), _A, _B),
    "sink_views": lambda: _aten(lambda a: torch.relu(a.t()).t() + 1, _A),
    "split_module": lambda: _aten(lambda a, b: torch.relu(a @ b) + 1, _A, _B),
}


def _pass(name: str) -> Pass:
    if name == "batch_fusion":
        return Registry().create(name, {"kinds": ["tanh"], "at_least": 2})
    if name == "split_module":
        return Registry().create(name, {"max_nodes": 1})
    if name == "partition_min_cut":
        return Registry().create(name, {"num_outputs": 1})
    return LIBRARY.get(name) or Registry().create(name)


def _text(module: GraphModule) -> str:
    lines = []
    for path, part in module.named_modules():
        if isinstance(part, GraphModule):
            lines += [f"[{path}]"] if path else []
            lines += [str(node.format_node()) for node in part.graph.nodes if node.op != "root"]
    return "\n".join(_short(line) for line in lines)


def _short(line: str) -> str:
    """Without what node formatting adds: users, devices."""
    return line.partition("# ")[0].replace("[num_users=", "[").rstrip()


@pytest.mark.parametrize("name", sorted(p.name for p in BUILTIN_PASSES))
def test_what_goes_in_and_what_comes_out(name: str) -> None:
    module = GRAPHS[name]()
    before = _text(module)
    rewrites = {}
    if name == "replace_pattern":
        pair = (
            symbolic_trace(lambda x: torch.relu(torch.relu(x))),
            symbolic_trace(lambda x: torch.relu(x)),
        )
        rewrites = {0: (pair,)}
    outcome = Pipeline((_pass(name),)).run(module, RecompileLedger(), None, rewrites)
    text = f"{before}\n\n    becomes ({outcome.runs[0].spelling})\n\n{_text(outcome.module)}\n"
    file = FOLDER / f"{name}.txt"
    if os.environ.get("LAZYFX_WRITE_GOLDEN"):
        FOLDER.mkdir(exist_ok=True)
        file.write_text(text)
    assert text == file.read_text()
