"""The passes that come with the server, a family a file."""

from lazyfx_server.passes.base import Pass
from lazyfx_server.passes.builtin.merge import CommonSubexpressionElimination
from lazyfx_server.passes.builtin.remove import DeadCodeElimination

BUILTIN_PASSES: tuple[type[Pass], ...] = (
    CommonSubexpressionElimination,
    DeadCodeElimination,
)
