"""The settings of torch that can be sent to a server, with their types.

Others run programs, write files, contain functions or put text into source and command lines. A
test checks every row against torch's own configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lazyfx.shared.native.setting_types import Bool, Float, Int, ValueType, Words

FUNCTORCH: Final = "functorch."
"""Prefix of settings of torch._functorch.config; all others are Inductor's."""

_FLAGS: Final = (
    "batch_invariant",
    "benchmark_fusion",
    "combo_kernels",
    "comprehensive_padding",
    "conv_1x1_as_mm",
    "coordinate_descent_tuning",
    "cpp.dynamic_threads",
    "cpp.enable_loop_tail_vec",
    "cpp.enable_tiling_heuristics",
    "cpp.enable_unsafe_math_opt_flag",
    "cpp.use_decompose_tanh",
    "cpp.weight_prepack",
    "deterministic",
    "emulate_precision_casts",
    "epilogue_fusion",
    "fallback_random",
    "force_layout_optimization",
    "inplace_buffers",
    "keep_output_stride",
    "layout_optimization",
    "loop_ordering_after_fusion",
    "max_autotune",
    "max_autotune_gemm",
    "max_autotune_pointwise",
    "memory_planning",
    "nan_asserts",
    "pattern_matcher",
    "permute_fusion",
    "reorder_for_locality",
    "reorder_for_peak_memory",
    "shape_padding",
    "size_asserts",
    "split_reductions",
    "triton.coalesce_tiling_analysis",
    "triton.cooperative_reductions",
    "triton.persistent_reductions",
    "use_fast_math",
)

SETTINGS: Final[Mapping[str, ValueType]] = MappingProxyType(
    {
        **dict.fromkeys(_FLAGS, Bool()),
        # Follows -ffp-contract= on the compiler's command line.
        "cpp.enable_floating_point_contract_flag": Words(("off", "on", "fast")),
        "cpp.max_horizontal_fusion_size": Int(1, 1024),
        "cpp.min_chunk_size": Int(1, 2**31 - 1),
        # Bits of a vector; 0 and 1 mean none.
        "cpp.simdlen": Int(0, 2048),
        "max_fusion_size": Int(1, 4096),
        "realize_opcount_threshold": Int(0, 100_000),
        "realize_reads_threshold": Int(0, 100_000),
        "triton.max_tiles": Int(1, 3),
        "triton.multi_kernel": Int(0, 3),
        # Each unrolled step adds a line of source.
        "unroll_reductions_threshold": Int(1, 1024),
        FUNCTORCH + "activation_memory_budget": Float(0.0, 1.0),
        FUNCTORCH + "activation_memory_budget_runtime_estimator": Words(("flops", "testing")),
        FUNCTORCH + "activation_memory_budget_solver": Words(
            ("dp", "greedy", "ilp", "dp_knapsack_sliding_hirschberg")
        ),
    }
)
