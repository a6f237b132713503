"""Generated Python source: what torch.fx can write, and whether it says what its graph says."""

from lazyfx.written.check import check_source, checked_generation
from lazyfx.written.errors import SourceMismatchError
from lazyfx.written.generated import check_generated

__all__ = ["SourceMismatchError", "check_generated", "check_source", "checked_generation"]
