"""The one place that decides what is computed on real values.

Fake tensors have no memory, so what runs on them cannot read or write outside of it. Whatever
computes real values (folding, verification, arithmetic on weights) does it inside `reviewed()`:
each operator that torch would run is looked up in a list, by name, and refused unless it is
there; where torch's kernel trusts its operands, they are checked first.
"""

from __future__ import annotations

from lazyfx_server.passes.analysis.evaluation.mode import UnreviewedError, reviewed
from lazyfx_server.passes.analysis.evaluation.reviewed_operators import is_reviewed
from lazyfx_server.passes.analysis.evaluation.tracing import without_real_constants

__all__ = ["UnreviewedError", "is_reviewed", "reviewed", "without_real_constants"]
