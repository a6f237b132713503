"""The steps of Inductor's graph passes: private names of torch._inductor, in one place.

Inductor runs its steps in three functions of a whole compile. Here each is looked up by name and
applied to one graph. Present from torch 2.11 to 2.13; a test looks up every name. Omitted are steps
that lower to Inductor's own code instead of a graph (mm_plus_mm, b2b_gemm), decide by timing
(pad_mm), draw different random numbers (replace_random), drop checks (remove_assert_ops), or need a
process group (bucketing, fsdp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import cache, partial
from importlib import import_module
from inspect import signature
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node

Stage = Literal["pre_grad", "joint_graph", "post_grad"]
Work = Callable[[GraphModule], object]

# The steps of each stage, in Inductor's order.
STEPS: Mapping[Stage, tuple[str, ...]] = MappingProxyType(
    {
        "pre_grad": (
            "sink_cat_after_pointwise",
            "normalization_pass",
            "remove_split_with_size_one_pass",
            "merge_getitem_cat_pass",
            "merge_stack_tahn_unbind_pass",
            "merge_splits_pass",
            "mutate_cat_pass",
            "split_cat_pass",
            "unbind_stack_pass",
            "split_cat_to_slices_pass",
            "unbind_cat_to_view_pass",
            "split_stack_to_cats_pass",
            "unbind_stack_to_slices_pass",
            "move_reshape_out_of_split_stack_pass",
            "einsum_to_pointwise_pass",
        ),
        "joint_graph": (
            "remove_redundant_views",
            "remove_noop_ops",
            "constant_fold_uniform_value",
            "pointless_convert",
            "pointless_view",
            "pointless_view_pair",
            "pointless_permute_pair",
            "bmm_to_mm",
            "mul_softmax_pattern",
            "div_softmax_pattern",
            "scatter_upon_const_tensor",
        ),
        "post_grad": (
            "remove_noop_ops",
            "normalization_aten_pass",
            "unbind_stack_aten_pass",
            "split_cat_aten_pass",
            "select_cat_aten_pass",
            "move_view_after_cat_aten_pass",
            "pointless_cumsum_replacement",
            "addmm",
            "reorder_for_locality",
            "reinplace_inplaceable_ops",
        ),
    }
)
# The batch fusions by kind, before autograd (torch functions) and after it (aten).
BATCHED: Mapping[str, tuple[str | None, str | None]] = MappingProxyType(
    {
        "linear": ("batch_linear", "batch_linear_post_grad"),
        "layer_norm": ("batch_layernorm", None),
        "relu": ("batch_relu", "batch_aten_relu"),
        "sigmoid": ("batch_sigmoid", "batch_aten_sigmoid"),
        "tanh": ("batch_tanh", "batch_aten_tanh"),
        "add": (None, "batch_aten_add"),
        "sub": (None, "batch_aten_sub"),
        "mul": (None, "batch_aten_mul"),
        "div": (None, "batch_aten_div"),
    }
)


def run_step(stage: Stage, name: str, module: GraphModule, mode: FakeTensorMode) -> None:
    """Applies one step to the graph of a module, in place.

    Args:
        stage: The stage of the step.
        name: One of `STEPS[stage]`.
        module: Every node has its value in `meta["val"]`, before autograd in
            `meta["example_value"]` too.
        mode: The mode of these values.
    """
    _within(module, mode, lambda: _steps(stage)[name](module))


def batch(module: GraphModule, name: str, mode: FakeTensorMode, at_least: int) -> None:
    """Fuses independent calls of one kind into one, in place.

    Args:
        module: As for `run_step`.
        name: The name of one of torch's fusions, as in BATCHED.
        mode: The mode of the values.
        at_least: The minimum number of calls to fuse.
    """
    fusion = import_module("torch._inductor.fx_passes.group_batch_fusion")
    before = name in fusion.PRE_GRAD_FUSIONS
    field = "pre_grad_fusion_options" if before else "post_grad_fusion_options"
    options = {name: {"min_fuse_set_size": at_least}}

    def work() -> None:
        with _config().patch({field: options}):
            fusion.group_batch_fusion_passes(module.graph, pre_grad=before)

    _within(module, mode, work)


def _within(module: GraphModule, mode: FakeTensorMode, work: Callable[[], object]) -> None:
    virtualized = import_module("torch._inductor.virtualized")
    sort = import_module("torch._inductor.pattern_matcher").stable_topological_sort
    with ExitStack() as stack:
        stack.enter_context(virtualized.V.set_fake_mode(mode))
        stack.enter_context(torch.no_grad())
        work()
        # Steps insert new nodes before the first call that they replace; torch sorts at the end.
        sort(module.graph)


def _config() -> Any:
    return import_module("torch._inductor.config")


@cache
def _steps(stage: Stage) -> Mapping[str, Work]:
    """The steps of a stage by name.

    Raises:
        AttributeError, KeyError, ImportError: This torch has no such step.
    """
    made = {"pre_grad": _pre_grad, "joint_graph": _joint_graph, "post_grad": _post_grad}[stage]()
    return {name: made[name] for name in STEPS[stage]}


def _pre_grad() -> Mapping[str, Work]:
    split_cat = import_module("torch._inductor.fx_passes.split_cat")
    passes = import_module("torch._inductor.fx_passes.pre_grad")
    return {
        **{name: partial(_apply, found) for name, found in split_cat.PRE_GRAD_PATTERNS.items()},
        "sink_cat_after_pointwise": passes.sink_cat_after_pointwise,
    }


def _joint_graph() -> Mapping[str, Work]:
    passes = import_module("torch._inductor.fx_passes.joint_graph")
    post_grad = import_module("torch._inductor.fx_passes.post_grad")
    return {
        **_patterns(passes.early_patterns, *passes.pass_patterns),
        "remove_redundant_views": passes.remove_redundant_views,
        "constant_fold_uniform_value": partial(_fold_uniform_values, passes),
        "remove_noop_ops": partial(_on_graph, post_grad.remove_noop_ops),
    }


def _fold_uniform_values(passes: Any, module: GraphModule) -> None:
    """Inductor's own step, except for the graph's tensor attributes: in Inductor these are inputs.

    It would replace a one-element parameter by its current value.
    """
    folder = passes.UniformValueConstantFolder

    class _OfCalls(folder):  # type: ignore[misc, valid-type]
        def _deduce_value(self, node: Node) -> Any:
            return self.unknown_value if node.op == "get_attr" else super()._deduce_value(node)

    passes.UniformValueConstantFolder = _OfCalls
    try:
        passes.constant_fold_uniform_value(module)
    finally:
        passes.UniformValueConstantFolder = folder


def _post_grad() -> Mapping[str, Work]:
    passes = import_module("torch._inductor.fx_passes.post_grad")
    split_cat = import_module("torch._inductor.fx_passes.split_cat")
    reinplace = import_module("torch._inductor.fx_passes.reinplace")
    updater = import_module("torch._inductor.fx_utils").FakeTensorUpdater

    # Up to torch 2.12 the updater takes the graph.
    takes_module = "gm" in signature(updater).parameters

    def write_over(module: GraphModule) -> None:
        followed = updater(module if takes_module else module.graph)
        reinplace.reinplace_inplaceable_ops(followed, module.graph)

    return {
        **{name: partial(_apply, found) for name, found in split_cat.POST_GRAD_PATTERNS.items()},
        **_patterns(*passes.pass_patterns),
        "remove_noop_ops": partial(_on_graph, passes.remove_noop_ops),
        "reorder_for_locality": partial(_on_graph, passes.reorder_for_locality),
        "reinplace_inplaceable_ops": write_over,
    }


def _on_graph(work: Callable[[Graph], object], module: GraphModule) -> None:
    work(module.graph)


def _apply(matcher: Any, module: GraphModule) -> None:
    matcher.apply(module.graph)


def _patterns(*matchers: Any) -> Mapping[str, Work]:
    """The patterns of a matcher whose replacement is a graph, by the names of their handlers."""
    matching = import_module("torch._inductor.pattern_matcher")
    chosen: dict[str, Any] = {}
    for matcher in matchers:
        for key, entries in matcher.patterns.items():
            for entry in entries:
                if isinstance(entry, matching.GraphPatternEntry):
                    name = entry.handler.__name__
                    own = chosen.setdefault(name, matching.PatternMatcherPass(pass_name=name))
                    if entry not in own.patterns[key]:
                        own.patterns[key].append(entry)
    return {name: partial(_apply, found) for name, found in chosen.items()}
