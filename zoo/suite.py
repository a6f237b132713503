"""What runs alone over each graph of the zoo: passes, pipelines, and rewrites that keep values."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from lazyfx.shared.pass_specs import InputGuard, Rewrite, replace_pattern, spec_of
from lazyfx.shared.pass_spelling import parse
from lazyfx_server.passes import Pass, Pipeline, Registry, Rewrites
from lazyfx_server.passes.named_pipelines import BUILTIN_PIPELINES
from lazyfx_server.passes.pass_requests import pipeline_of
from lazyfx_server.passes.rewrites import RewriteReader
from zoo.captures import Capture
from zoo.steps import Gradients

# Spellings of every built-in pass, with options that find work in small models, and of the
# pipelines with names.
SUITE: Mapping[str, str] = {
    **{name: name for name in Registry().names()},
    "partition_by_support": 'partition_by_support{supported=["linear","add","matmul","conv2d"]}',
    "quantize_weights": "quantize_weights{min_elements=64}",
    "split_module": "split_module{max_nodes=40}",
    "batch_fusion": "batch_fusion{at_least=2}",
    "bfloat16": "convert_dtype,remove_duplicate_casts,shape_propagation",
    **dict(BUILTIN_PIPELINES),
}
# Cuts joint graphs, with options that only the graph can say.
_FOR_JOINT = "partition_min_cut"
# These make other parameters, or constants of them; there is nothing to compare gradients with.
_NOT_TRAINABLE = {"fuse_conv_bn", "fuse_linear_bn", "quantize_weights", "inference"}
# These round on purpose: gradients are compared all together, and batch statistics of two values,
# which make any size of rounding, are left out; so are graphs whose results are gradients, and
# those that return what they chose by values that are rounded now.
_ROUNDS = {"convert_dtype", "bfloat16"}
# How far a pass may be off, of the largest value; passes that change precision say how far.
_ALLOWED = 1e-3
# Attention written out is captured for those that look for it.
_FOR_ATTENTION = ("fuse_attention", "inference")
_MAX_NODES = 1_000_000


class Task(NamedTuple):
    """One run over one graph.

    Attributes:
        name: In the table.
        pipeline: What runs.
        rewrites: What its passes replace.
        allowed: How far results may be off, of the largest value.
        gradients: How gradients are compared.
    """

    name: str
    pipeline: Pipeline
    rewrites: Mapping[int, Rewrites]
    allowed: float
    gradients: Gradients


def names_for(way: str) -> tuple[str, ...]:
    """What of the suite suits the graphs of a way of capturing."""
    if way == "eager":
        return _FOR_ATTENTION
    leave_out = _ROUNDS if way == "aot" else {_FOR_JOINT}
    return tuple(name for name in SUITE if name not in leave_out)


def task(name: str, capture: Capture) -> Task | None:
    """One entry of the suite, made for a graph; None where it is for other graphs."""
    spelling = SUITE[name]
    if name in _ROUNDS and (_takes_statistics(capture) or _returns_choices(capture)):
        return None
    if name == _FOR_JOINT:
        if capture.label != "joint":
            return None
        primals, tangents = capture.args
        results = len(tree_leaves(capture.module.graph.output_node().args[0]))
        options = f"num_outputs={results - len(primals)},num_tangents={len(tangents)}"
        spelling = f"{name}{{{options}}}"
    specs = [spec_of(each).message() for each in parse(spelling)]
    if name == "replace_pattern":
        specs = [replace_pattern(*_REWRITES).message()]
    pipeline = pipeline_of(Registry(), specs)
    rewrites = RewriteReader().read(specs, pipeline.passes)
    allowed = max(_ALLOWED, *(_declared(each) for each in pipeline.passes))
    gradients: Gradients = "together" if name in _ROUNDS else "each"
    if name in _NOT_TRAINABLE:
        gradients = "not"
    return Task(name, pipeline, rewrites, allowed, gradients)


def _takes_statistics(capture: Capture) -> bool:
    """Whether a graph normalizes by the statistics of its batch."""
    calls = [node for node in capture.module.graph.nodes if "batch_norm" in str(node.target)]
    return any(True in (*node.args[5:6], node.kwargs.get("training")) for node in calls)


def _returns_choices(capture: Capture) -> bool:
    """Whether a graph returns whole numbers that it computed: where the nearest of codes is, say.

    A value that is rounded may have another one for its nearest.
    """
    returned = capture.module.graph.output_node().all_input_nodes
    values = [
        n.meta.get("val", n.meta.get("example_value")) for n in returned if n.op[:4] == "call"
    ]
    return any(isinstance(v, torch.Tensor) and not v.is_floating_point() for v in values)


def _declared(pass_: Pass) -> float:
    return pass_.tolerance if pass_.tolerance > Pass.tolerance else 0.0


def _floats(count: int) -> tuple[InputGuard, ...]:
    return tuple(InputGuard(place, ("float32",)) for place in range(count))


def _sum_of_product(a: Any, b: Any, c: Any) -> Any:
    return operator.add(operator.mul(a, b), c)


# Each computes what it replaces, up to rounding, and lays it out in memory as that did (a view
# behind it depends on it): in the operators of aten graphs, and in those of dynamo's.
_ATEN = torch.ops.aten
_REWRITES = (
    Rewrite(
        lambda a, b, c: _ATEN.add.Tensor(_ATEN.mul.Tensor(a, b), c),
        lambda a, b, c: _ATEN.sub.Tensor(_ATEN.mul.Tensor(a, b), _ATEN.neg.default(c)),
        _floats(3),
    ),
    Rewrite(
        lambda a, b: _ATEN.add.Tensor(a, b),
        lambda a, b: _ATEN.sub.Tensor(a, _ATEN.neg.default(b)),
        _floats(2),
    ),
    Rewrite(
        lambda x, w, b: _ATEN.linear.default(x, w, b),
        lambda x, w, b: _ATEN.add.Tensor(_ATEN.linear.default(x, w), b),
        _floats(3),
    ),
    Rewrite(
        lambda x: _ATEN.silu.default(x),
        lambda x: _ATEN.mul.Tensor(x, _ATEN.sigmoid.default(x)),
        _floats(1),
    ),
    Rewrite(
        _sum_of_product,
        lambda a, b, c: operator.sub(operator.mul(a, b), torch.neg(c)),
        _floats(3),
    ),
    Rewrite(
        lambda a, b: operator.add(a, b),
        lambda a, b: operator.sub(a, torch.neg(b)),
        _floats(2),
    ),
    Rewrite(
        lambda x, w, b: torch._C._nn.linear(x, w, b),
        lambda x, w, b: torch.add(torch._C._nn.linear(x, w), b),
        _floats(3),
    ),
)
