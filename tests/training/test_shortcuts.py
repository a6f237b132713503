"""What we compute in place of Inductor is what Inductor computes."""

from __future__ import annotations

import random

import pytest
import sympy
import torch._inductor.lowering  # noqa: F401 - registers the rules of dtypes
from torch._inductor import sizevars
from torch._inductor.codegen import common
from torch._inductor.dtype_propagation import DtypePropagationOpsHandler
from torch.utils._sympy.functions import FloorDiv, ModularIndexing

from lazyfx_server.jobs.native.ahead import torch_shortcuts

VARIABLES = [sympy.Symbol(f"d{number}", integer=True, nonnegative=True) for number in range(4)]
SIZE = sympy.Symbol("s0", integer=True, positive=True)


def index(draw: random.Random) -> sympy.Expr:
    """A sum as kernels have; some terms are not simply a variable times an integer."""
    terms = [draw.choice((0, 1, 7, 64, -3)) * draw.choice(VARIABLES) for _ in range(4)]
    terms.append(sympy.Integer(draw.choice((0, 5, 4096))))
    x, y = draw.sample(VARIABLES, 2)
    odd = [x * y, SIZE * x, FloorDiv(x, 16), ModularIndexing(x + 2 * y, 1, 8), 4 * (x + y) * SIZE]
    if draw.random() < 0.4:
        terms.append(draw.choice(odd))
    return sum(terms, sympy.S.Zero)


def test_a_stride_that_is_read_off_is_the_one_that_sympy_finds() -> None:
    draw, left = random.Random(0), 0
    for _ in range(40):
        expression, var = index(draw), draw.choice(VARIABLES)
        for length in (8, 16):
            ours = torch_shortcuts.simplify_index(expression, var, length)
            theirs = torch_shortcuts.SIMPLIFY(expression, var, length)
            left += ours is expression
            assert sizevars.stride_at(ours, var) == sizevars.stride_at(theirs, var), expression
    assert 20 < left < 80, "both kinds are among them"


def test_the_handler_of_dtypes_has_every_rule(monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = torch_shortcuts._DtypeHandlers()
    ours = handlers.current()
    assert ours is handlers.current() is DtypePropagationOpsHandler()
    rule = next(iter(torch_shortcuts.op_dtype_propagation_rules.values()))
    monkeypatch.setitem(torch_shortcuts.op_dtype_propagation_rules, "lazyfx_new", rule)
    assert callable(handlers.current().lazyfx_new)
    assert all(hasattr(ours, op.name) for op in common.pointwise_overrides_data.values())
