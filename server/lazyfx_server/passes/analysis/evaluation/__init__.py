"""The one place that decides which operators run on real values.

Fake tensors have no memory, so operators on them cannot access memory out of bounds. All
computation on real values (folding, verification, arithmetic on weights) runs inside `reviewed()`:
each operator that torch would run must be in a list of reviewed names. If torch's kernel does not
validate its operands, they are checked first.
"""

from __future__ import annotations

from lazyfx_server.passes.analysis.evaluation.mode import UnreviewedError, reviewed
from lazyfx_server.passes.analysis.evaluation.tracing import without_real_constants

__all__ = ["UnreviewedError", "reviewed", "without_real_constants"]
