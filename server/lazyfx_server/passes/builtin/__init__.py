"""The passes that come with the server, a family a file."""

from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.builtin.analysis import Analyze
from lazyfx_server.passes.builtin.attention import FuseAttention
from lazyfx_server.passes.builtin.batch import BatchFusion
from lazyfx_server.passes.builtin.checkpoint import PartitionMinCut
from lazyfx_server.passes.builtin.fold import ConstantFold
from lazyfx_server.passes.builtin.fuse import FuseConvBn, FuseLinearBn
from lazyfx_server.passes.builtin.inductor import (
    InductorJointGraph,
    InductorPostGrad,
    InductorPreGrad,
)
from lazyfx_server.passes.builtin.matmuls import MergeMatmul
from lazyfx_server.passes.builtin.merge import CommonSubexpressionElimination
from lazyfx_server.passes.builtin.normalize import NormalizeArguments
from lazyfx_server.passes.builtin.precision import ConvertDtype
from lazyfx_server.passes.builtin.quantize import QuantizeWeights
from lazyfx_server.passes.builtin.reinplace import Reinplace
from lazyfx_server.passes.builtin.remove import DeadCodeElimination, RemoveDropout
from lazyfx_server.passes.builtin.retrace import Decompose, Functionalize
from lazyfx_server.passes.builtin.rewrite import ReplacePattern
from lazyfx_server.passes.builtin.shapes import ShapePropagation
from lazyfx_server.passes.builtin.simplify import NoOpElimination, RemoveDuplicateCasts
from lazyfx_server.passes.builtin.split import PartitionBySupport, SplitModule
from lazyfx_server.passes.builtin.views import SinkViews

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
