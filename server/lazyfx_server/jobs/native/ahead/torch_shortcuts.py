"""Functions of Inductor that compute the same thing again and again; replaced only here.

Each replacement returns what torch's own function returns: Inductor writes the same source, sooner.
`docs/performance.md` says what they save. Private names of torch that only this needs.
"""

from __future__ import annotations

from typing import Any, Final

import sympy
from torch._inductor import sizevars
from torch._inductor.codegen import common
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch._inductor.utils import op_dtype_propagation_rules

SIMPLIFY: Final = sizevars.simplify_index_in_vec_range
"""torch's function; simplifies an index, only to learn its stride in one variable."""


def install() -> None:
    """Replace them in this process."""
    for module, name, shortcut in (
        (sizevars, "simplify_index_in_vec_range", simplify_index),
        (common, "DtypePropagationOpsHandler", _DtypeHandlers().current),
    ):
        getattr(module, name)  # raises if torch has moved it
        setattr(module, name, shortcut)


def simplify_index(index: sympy.Expr, var: sympy.Expr, vec_length: int) -> sympy.Expr:
    """As torch's function, but an index whose strides can be read off is left as it is.

    Most are sums of variables times integers. SymPy spends some 10 ms on each to find nothing.
    """
    if all(map(_has_constant_stride, sympy.Add.make_args(index))):
        return index
    found: sympy.Expr = SIMPLIFY(index, var, vec_length)
    return found


def _has_constant_stride(term: Any) -> bool:
    if term.is_Mul and len(term.args) == 2 and term.args[0].is_Integer:
        term = term.args[1]
    return bool(term.is_Integer or term.is_Symbol)


class _DtypeHandlers:
    """torch's handler of dtypes: one object, which torch initializes again for every operation."""

    def __init__(self) -> None:
        self._rules = (-1, -1)
        self._handler: Any = None

    def current(self) -> Any:
        """The handler, with all rules that there are."""
        rules = len(op_dtype_propagation_rules), len(common.pointwise_overrides_data)
        if rules != self._rules:
            self._handler, self._rules = DtypePropagationOpsHandler(), rules
        return self._handler
