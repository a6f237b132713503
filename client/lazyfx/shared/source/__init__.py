"""Generated Python source: what torch.fx can write, and whether it matches its graph."""

from lazyfx.shared.source.check import check_source, checked_generation
from lazyfx.shared.source.foreign import check_generated
from lazyfx.shared.source.mismatch import SourceMismatchError

__all__ = ["SourceMismatchError", "check_generated", "check_source", "checked_generation"]
