"""The built-in passes, one family per file."""

from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.builtin.fusing.batch_fusion import BatchFusion
from lazyfx_server.passes.builtin.fusing.fuse_attention import FuseAttention
from lazyfx_server.passes.builtin.fusing.fuse_batch_norm import FuseConvBn, FuseLinearBn
from lazyfx_server.passes.builtin.fusing.inductor_passes import (
    InductorJointGraph,
    InductorPostGrad,
    InductorPreGrad,
)
from lazyfx_server.passes.builtin.fusing.merge_matmul import MergeMatmul
from lazyfx_server.passes.builtin.fusing.replace_pattern import ReplacePattern
from lazyfx_server.passes.builtin.inspecting.analyze import Analyze
from lazyfx_server.passes.builtin.inspecting.shape_propagation import ShapePropagation
from lazyfx_server.passes.builtin.memory.convert_dtype import ConvertDtype
from lazyfx_server.passes.builtin.memory.quantize_weights import QuantizeWeights
from lazyfx_server.passes.builtin.memory.reinplace import Reinplace
from lazyfx_server.passes.builtin.simplifying.common_subexpressions import (
    CommonSubexpressionElimination,
)
from lazyfx_server.passes.builtin.simplifying.constant_fold import ConstantFold
from lazyfx_server.passes.builtin.simplifying.no_ops import NoOpElimination, RemoveDuplicateCasts
from lazyfx_server.passes.builtin.simplifying.normalize_arguments import NormalizeArguments
from lazyfx_server.passes.builtin.simplifying.remove import DeadCodeElimination, RemoveDropout
from lazyfx_server.passes.builtin.simplifying.retrace import Decompose, Functionalize
from lazyfx_server.passes.builtin.simplifying.sink_views import SinkViews
from lazyfx_server.passes.builtin.splitting.partition_min_cut import PartitionMinCut
from lazyfx_server.passes.builtin.splitting.split import PartitionBySupport, SplitModule

BUILTIN_PASSES: tuple[type[Pass], ...] = (
    Analyze,
    BatchFusion,
    CommonSubexpressionElimination,
    ConstantFold,
    ConvertDtype,
    DeadCodeElimination,
    Decompose,
    Functionalize,
    FuseAttention,
    FuseConvBn,
    FuseLinearBn,
    InductorJointGraph,
    InductorPostGrad,
    InductorPreGrad,
    MergeMatmul,
    NoOpElimination,
    NormalizeArguments,
    PartitionBySupport,
    PartitionMinCut,
    QuantizeWeights,
    Reinplace,
    RemoveDropout,
    RemoveDuplicateCasts,
    ReplacePattern,
    ShapePropagation,
    SinkViews,
    SplitModule,
)
