"""What is computed on real values: reviewed operators, within the memory of their operands."""

from __future__ import annotations

import contextlib
import re
from operator import getitem
from typing import Any

import pytest
import torch
from passes.running import run
from torch._ops import OpOverload, OpOverloadPacket
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule
from torch.fx.experimental import proxy_tensor

from lazyfx_server.passes import PassError, Registry
from lazyfx_server.passes.analysis.evaluation import (
    UnreviewedError,
    reviewed,
    without_real_constants,
)
from lazyfx_server.passes.analysis.evaluation import reviewed_operators as rules
from lazyfx_server.passes.analysis.evaluation.composite_operators import (
    REVIEWED_COMPOSITES,
    UnreviewedCompositeError,
    check_composite,
)
from lazyfx_server.passes.analysis.fake_run import FakeRun
from lazyfx_server.passes.verify import NumericVerifier

aten: Any = torch.ops.aten
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd
INT = {"dtype": torch.int64}
# Of those that compute element by element, what torch does not tag so.
_UNTAGGED = {
    "hardswish", "hardswish_backward", "hardsigmoid_backward", "hardtanh_backward",
    "leaky_relu_backward", "elu_backward", "softplus_backward", "softshrink_backward",
    "hardshrink_backward", "mish_backward", "log_sigmoid_forward", "complex", "polar",
    "_prelu_kernel", "_prelu_kernel_backward", "mse_loss", "mse_loss_backward", "smooth_l1_loss",
    "huber_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits", "isin",
}  # fmt: skip


def _graph(target: Any, *args: Any, **kwargs: Any) -> GraphModule:
    """A call on constants, with an operator behind it so that its result may be folded."""
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["val"] = torch.empty(4, device="meta")

    def node(value: Any) -> Any:
        if isinstance(value, tuple) and value and value[0] == "full":
            return graph.call_function(aten.full.default, tuple(value[1:3]), dict(*value[3:]))
        return [node(item) for item in value] if isinstance(value, list) else value

    made = graph.call_function(target, tuple(map(node, args)), kwargs)
    if isinstance(target, OpOverload) and len(target._schema.returns) > 1:
        made = graph.call_function(getitem, (made, 0))
    graph.output((x, graph.call_function(aten.neg.default, (made,))))
    return GraphModule(torch.nn.Module(), graph)


def full(value: float, *shape: int) -> Any:
    return ("full", list(shape), value, INT if isinstance(value, int) else {})


WILD = {
    "a view by wild strides": (aten._reshape_alias_copy.default, full(1.0, 4), [2], [10**9]),
    "a longer view": (aten._reshape_alias_copy.default, full(1.0, 4), [4096], [1]),
    "a view behind the end": (aten.as_strided_copy.default, full(1.0, 4), [4], [1], 2**20),
    "an index behind the end": (aten._unsafe_index.Tensor, full(1.0, 4), [full(2**30, 2)]),
    "an index before the begin": (aten._unsafe_index.Tensor, full(1.0, 4), [full(-(2**30), 2)]),
    "masked indices": (
        aten._unsafe_masked_index.default, full(1.0, 4), full(1, 2), [full(2**30, 2)], 0.0,
    ),
    "rows of a gradient": (
        aten.embedding_dense_backward.default, full(1.0, 2, 4), full(2**40, 2), 4, -1, False,
    ),
    "places of maxima": (
        aten.max_pool2d_with_indices_backward.default, full(1.0, 1, 1, 2, 2),
        full(1.0, 1, 1, 4, 4), [2, 2], [2, 2], [0, 0], [1, 1], False, full(2**40, 1, 1, 2, 2),
    ),
    "bags": (aten._embedding_bag_dense_backward.default, full(1.0, 2, 4), full(2**40, 2),
             full(2**40, 2), full(2, 2), full(2**40, 2), 4, False, 0, None),
    "classes": (aten.nll_loss_backward.default, full(1.0), full(1.0, 2, 3), full(2**40, 2),
                None, 1, -100, full(1.0)),
    "counts": (aten.repeat_interleave.Tensor, full(2**30, 2)),
    "statistics": (aten.native_batch_norm.default, full(1.0, 1, 4, 2), full(1.0, 1),
                   full(1.0, 1), full(1.0, 1), full(1.0, 1), False, 0.1, 1e-5),
    "no statistics": (aten._native_batch_norm_legit_no_training.default, full(1.0, 2, 4, 3),
                      full(1.0, 4), full(1.0, 4), full(1.0, 0), full(1.0, 4), 0.1, 1e-5),
    "no running statistics": (aten._native_batch_norm_legit.default, full(1.0, 2, 4, 3),
                              full(1.0, 4), full(1.0, 4), full(1.0, 0), full(1.0, 4), True, 0.1,
                              1e-5),
    "no weight": (aten.native_batch_norm_backward.default, full(1.0, 2, 4, 3),
                  full(1.0, 2, 4, 3), full(1.0, 0), full(1.0, 4), full(1.0, 4), full(1.0, 4),
                  full(1.0, 4), True, 1e-5, [True, True, True]),
    "more planes than were pooled": (aten._adaptive_avg_pool2d_backward.default,
                                     full(1.0, 1, 2, 2, 2), full(1.0, 1, 0, 4, 4)),
    "the lowest integer": (aten.floor_divide.default, full(-(2**63), 2), full(-1, 2)),
    "a file": (aten.from_file.default, "/etc/passwd", False, 64),
    "random numbers": (aten.rand.default, [4]),
    "memory as it was": (aten.empty.memory_format, [65536]),
    "steps of a packed batch": (
        aten.lstm.data, full(1.0, 4, 3), full(0, 0), [full(1.0, 1, 2, 4), full(1.0, 1, 2, 4)],
        [full(1.0, 16, 3), full(1.0, 16, 4)], False, 1, 0.0, False, False,
    ),
    "quasi-random state": (aten._sobol_engine_ff_.default, full(1, 4), 5, full(1, 1, 1), 1000, 0),
    "quasi-random numbers": (aten._sobol_engine_draw.default, full(1, 4), 5, full(1, 4, 2),
                             1000, 0, torch.float32),
    "a matrix by its address": (aten.fbgemm_pack_gemm_matrix_fp16.default, full(1.0, 4, 4)),
    "bits of a row": (aten.choose_qparams_optimized.default, full(1.0, 4), 4, 200, 0.16, 8),
    "bins": (aten.bincount.default, full(2**40, 2)),
}  # fmt: skip


@pytest.mark.parametrize("case", WILD)
def test_a_wild_call_is_not_folded(case: str) -> None:
    target, *args = WILD[case]
    module = _graph(target, *args)
    folded = run(module, Registry().create("constant_fold", {})).module
    assert target in [node.target for node in folded.graph.nodes]


@pytest.mark.parametrize("case", [case for case in WILD if case != "random numbers"])
def test_a_wild_call_is_not_verified(case: str) -> None:
    target, *args = WILD[case]
    if case == "memory as it was":
        NumericVerifier().start(_graph(target, *args))  # it is filled
        return
    with pytest.raises(PassError) as caught:
        NumericVerifier().start(_graph(target, *args))
    assert caught.value.kind == "precondition"
    assert caught.value.field == "verify"
    assert re.search(
        "cannot run on real values|cannot be evaluated on the server", str(caught.value)
    )


def test_fresh_memory_is_filled() -> None:
    with reviewed():
        made = [torch.empty(4096) for _ in range(8)]
        made.append(torch.ones(3).new_empty(100))
    assert not any(tensor.any() for tensor in made)


def test_what_is_made_of_reviewed_operators_runs() -> None:
    x = torch.randn(4, 4)
    with reviewed():
        assert torch.einsum("ij,jk->ik", x, x).shape == (4, 4)
        assert torch.nn.LSTM(4, 4)(x[None])[0].shape == (1, 4, 4)
        assert torch.quantile(x, 0.5).ndim == 0


def test_unreviewed_operators_do_not_run() -> None:
    with reviewed(), pytest.raises(UnreviewedError) as caught:
        torch.bincount(torch.tensor([1, 2]))
    assert caught.value.operator == "aten::bincount"


def test_what_is_made_of_others_runs_only_if_it_was_reviewed() -> None:
    """Its kernel runs above the dispatch mode, and may read memory without calling anything."""
    listed = 0
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        packet = getattr(getattr(torch.ops, space), name, None)
        operator = getattr(packet, schema.overload_name or "default", None)
        if not isinstance(operator, OpOverload):
            continue
        with contextlib.suppress(RuntimeError):
            if not operator.has_kernel_for_dispatch_key(_COMPOSITE):
                continue
            plain = name if name.endswith("__") else name.removesuffix("_")
            known = space == "aten" and not {name, plain}.isdisjoint(
                REVIEWED_COMPOSITES | rules.RULES.keys()
            )
            listed += known
            for called in (operator, packet):
                with contextlib.nullcontext() if known else pytest.raises(UnreviewedCompositeError):
                    check_composite(called, (), {})
    assert listed > 250


def test_functions_and_methods_are_known_by_their_operators() -> None:
    rows = torch.ones(4, 4)
    with reviewed():
        assert torch.clip(rows, 2).T.matmul(rows).shape == (4, 4)
        for call in (
            lambda: torch._choose_qparams_per_tensor(rows),
            lambda: torch._rowwise_prune(rows, rows[0] > 0, torch.int64),
            lambda: torch.lstm(rows, rows[0].long(), [rows], [rows], False, 1, 0.0, False, False),
            lambda: rows.to_sparse(),
        ):
            with pytest.raises(UnreviewedError):
                call()


@pytest.mark.parametrize("group", [g for g in dir(rules) if g.isupper() and g != "FRESH"])
def test_reviewed_names_are_torchs(group: str) -> None:
    """On each supported version: a name that is gone reviews nothing."""
    names = getattr(rules, group)
    known = [n for n in names if isinstance(getattr(aten, n, None), OpOverloadPacket)]
    gone = set(names) - set(known)
    assert len(gone) <= len(names) // 20 + 1, gone
    if group == "POINTWISE":
        for name in set(known) - _UNTAGGED:
            overloads = [getattr(getattr(aten, name), o) for o in getattr(aten, name).overloads()]
            assert any(torch.Tag.pointwise in o.tags for o in overloads), name


def _trained(module: torch.nn.Module, *shape: int) -> None:
    x = torch.randn(*shape, requires_grad=True)
    with reviewed():
        (gradient,) = torch.autograd.grad(module(x).square().sum(), x)
    assert gradient.shape == x.shape


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (torch.nn.Linear(4, 4), (3, 4)),
        (torch.nn.Conv2d(4, 2, 3), (1, 4, 8, 8)),
        (torch.nn.BatchNorm1d(4), (3, 4)),
        (torch.nn.BatchNorm2d(4).eval(), (2, 4, 3, 3)),
        (torch.nn.LayerNorm((4, 2)), (3, 4, 2)),
        (torch.nn.GroupNorm(2, 4), (3, 4, 5)),
        (torch.nn.MaxPool2d(2), (1, 2, 4, 4)),
        (torch.nn.AvgPool2d(2), (1, 2, 4, 4)),
        (torch.nn.AdaptiveAvgPool2d(2), (1, 2, 4, 4)),
        (torch.nn.Softmax(-1), (3, 4)),
        (torch.nn.GELU(), (3, 4)),
        (torch.nn.TransformerEncoderLayer(8, 2, 8, 0.0, batch_first=True), (2, 3, 8)),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, torch.nn.Module) else "",
)
def test_layers_and_their_gradients_are_reviewed(layer: torch.nn.Module, shape: Any) -> None:
    _trained(layer, *shape)


def test_indexing_within_bounds_runs() -> None:
    x, index = torch.randn(4, 4, requires_grad=True), torch.tensor([0, 3, -1])
    with reviewed():
        read = x[index] + x[:, index].sum() + torch.gather(x, 0, index[:2, None].clamp(0)).sum()
        read = read + torch.nn.functional.embedding(index[:2], x).sum() + torch.take(x, index).sum()
        loss = torch.nn.functional.cross_entropy(read, torch.tensor([1, 3, -100]))
        torch.autograd.grad(loss, x)


def test_torch_has_what_keeps_constants_unreal() -> None:
    assert fake_tensor.CONSTANT_NUMEL_LIMIT == proxy_tensor.CONSTANT_NUMEL_LIMIT == 1
    assert callable(FakeTensorMode.can_run_unsafe_fallback)
    with without_real_constants(), FakeTensorMode():
        assert torch.tensor(7).constant is None  # type: ignore[attr-defined]
    with FakeTensorMode():
        assert torch.tensor(7).constant is not None  # type: ignore[attr-defined]


def test_fake_runs_compute_nothing_real() -> None:
    """The value of a constant would be read far outside of its memory."""
    graph = Graph()
    none = graph.call_function(torch.zeros, (0,), {"dtype": torch.int64})
    rows = graph.call_function(torch.ones, (4, 4))
    packed = (rows, none, [rows, rows], [rows, rows], False, 1, 0.0, False, False)
    graph.call_function(torch.lstm, packed)
    made = graph.call_function(torch.tensor, (7,))
    wild = graph.call_function(aten._reshape_alias_copy.default, (made, [2], [10**12]))
    graph.output(wild)
    module = GraphModule(torch.nn.Module(), graph)
    run_ = FakeRun(module)
    with run_.active():
        for node in module.graph.nodes:
            if node.op != "output":
                run_.compute(node)
