"""The passes that come with the server, a family a file."""

from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.builtin.fold import ConstantFold
from lazyfx_server.passes.builtin.fuse import FuseConvBn
from lazyfx_server.passes.builtin.merge import CommonSubexpressionElimination
from lazyfx_server.passes.builtin.normalize import NormalizeArguments
from lazyfx_server.passes.builtin.remove import DeadCodeElimination, RemoveDropout
from lazyfx_server.passes.builtin.rewrite import ReplacePattern
from lazyfx_server.passes.builtin.shapes import ShapePropagation

BUILTIN_PASSES: tuple[type[Pass], ...] = (
    CommonSubexpressionElimination,
    ConstantFold,
    DeadCodeElimination,
    FuseConvBn,
    NormalizeArguments,
    RemoveDropout,
    ReplacePattern,
    ShapePropagation,
)
