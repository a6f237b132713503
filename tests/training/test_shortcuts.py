"""What we compute in place of Inductor, or before it, is what Inductor computes."""

from __future__ import annotations

import os
import random
from pathlib import Path

import nursery
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


USUAL = """
import sys
from pathlib import Path
import torch
from torch._inductor import config
from lazyfx_server.execution import CallFailed
from lazyfx_server.jobs.native.toolchain.compiler import find_compiler
from lazyfx_server.jobs.native.toolchain.subprocess_hooks import redirect_compiles
from lazyfx_server.jobs.native.toolchain.usual_build import usual_build
from lazyfx_server.v1 import worker_pb2 as worker

asked = []

def note(question):
    asked.append(worker.BuildRequest.FromString(question))
    raise CallFailed("not in this test")

config.cpp.vec_isa_ok = True  # no probe
compiler, folder = find_compiler(), Path(sys.argv[1])
usual = usual_build(compiler, folder)
redirect_compiles(compiler, folder, note)
try:
    torch.compile(torch.relu)(torch.ones(64))
except Exception:
    pass
for each in (usual, asked[0]):
    print(each.kind, each.header, sorted(each.flags))
"""


@pytest.mark.usefixtures("needs_gxx")
def test_the_usual_build_is_that_of_a_kernel(tmp_path: Path) -> None:
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    run = nursery.run("inductor", ["-c", USUAL, str(tmp_path)], env=environment, check=True)
    usual, kernel = run.stdout.splitlines()[-2:]
    assert usual == kernel
    assert "cpp_prefix.h" in usual


PREPARED = """
import os
import lazyfx_server.jobs.native.ahead.prepared_inductor
from torch._functorch import aot_autograd
from torch._inductor import codecache, cpu_vec_isa
from torch._inductor.fx_passes import joint_graph

assert joint_graph.lazy_init.cache_info().currsize
left = [
    cpu_vec_isa.valid_vec_isa_list.cache_info().currsize,
    codecache.CacheBase.get_local_cache_path.cache_info().currsize,
    next(aot_autograd.AOT_COUNTER),
    len(codecache.PyCodeCache.modules),
    len(codecache.CppPythonBindingsCodeCache.cache),
    int("TORCHINDUCTOR_CACHE_DIR" in os.environ and "warm-up" in os.environ["TORCHINDUCTOR_CACHE_DIR"]),
]
print(left)
"""


def test_a_process_that_is_prepared_holds_nothing_of_its_compile() -> None:
    run = nursery.run("native_server", ["-c", PREPARED], check=True)
    assert run.stdout.split("\n")[-2] == str([0] * 6)


@pytest.mark.long
def test_a_job_writes_the_same_whether_its_parent_was_prepared_or_not() -> None:
    """Also in a state of torch in which nothing was prepared."""
    program = Path(__file__).with_name("prepared_parents.py")
    run = nursery.run("inductor", [str(program)], check=True)
    found = [line.split(maxsplit=2) for line in run.stdout.splitlines()[-2:]]
    same = [(name, verdict) for name, _, verdict in found]
    assert same == [("float64", "same"), ("autocast", "same")], run.stderr
    assert all(int(kernels) > 0 for _, kernels, _ in found), run.stderr
