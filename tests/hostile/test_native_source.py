"""Checks of generated native source: Inductor's output is accepted, breakouts are refused."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile.native_lowering import lower
from torch import nn
from torch._inductor import codecache

from lazyfx.backend.dynamo_graphs import flatten
from lazyfx.capture import remembering
from lazyfx.shared.native.native_request import native_request
from lazyfx.v1 import compiler_pb2 as pb
from lazyfx.v1 import graph_pb2
from lazyfx_server.jobs.native import making, native_job
from lazyfx_server.jobs.native.confinement import Confinement
from lazyfx_server.jobs.native.toolchain.compiler import find_compiler
from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp, check_wrapper
from lazyfx_server.v1 import worker_pb2 as worker

MARKER = "zqmarkzq"
INCLUDE = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
KERNEL = INCLUDE + 'extern "C"  void  kernel(float* p)\n{\n    p[0] = 1.0f;\n%s\n}\n'


@pytest.fixture(autouse=True)
def _own_inductor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize(
    "code",
    [
        'asm("int3");',
        '__asm__ volatile ("nop");',
        "as\\\nm(0);",
        '_Pragma("GCC poison x")',
        "__attribute__((constructor)) void f();",
        '__attribute__((section(".init_array"))) int x;',
        "[[gnu::constructor]] void f();",
        "[ [gnu::constructor]] void f();",
        "[/**/[gnu::constructor]] void f();",
        "<:<:gnu::constructor:>:> void f();",
        "<:[gnu::constructor]:> void f();",
        '\n#include "/etc/passwd"\n',
        "\n#include </etc/passwd>\n",
        "\n#include <torch/../../../etc/passwd>\n",
        "\n  #  include <fstream>\n",
        "\n%:include <fstream>\n",
        "\n??=include <fstream>\n",
        "\n/* */ #include <fstream>\n",
        "\n#define a asm\n",
        '\n#line 1 "x"\n',
        '\n#pragma GCC optimize("O0")\n',
        "\n#pragma GCC plugin\n",
        '\n#if __has_include("/etc/passwd")\n#endif\n',
        "\n#embed </etc/passwd>\n",
        "\nimport <fstream>;\n",
        'system("ls");',
        "::dlopen(0, 1);",
        'p = "a;b";',
        'p = "a\\x41";',
        'p = L"abc";',
        'p = R"x(a;b)x";',
        'p = R"(never ends;',
        'p = "never ends;',
        "/* never ends",
        "// a comment \\\nasm(0);",
        "/* a comment *\\\n/ asm(0); /* */",
        "p = 'ab';",
        "p = `x`;",
        "p = 1'000;",
        "\0",
        "\r#include <fstream>",
        "\x0c",
        "\u2028",
        "int \u00e9;",
        "int \\u00e9;",
        "__builtin_trap();",
        "Py_CompileString(0, 0, 0);",
        # Between two comments of one directive, and after a continued line.
        "\n#define ATTRIBUTE_NO_SANITIZE_ADDRESS /*a*/ asm /*b*/\n",
        "\n#include <cmath> /*a*/ x /*b*/\n",
        "\n#if 1 /*a*/ && __has_include(<x>) /*b*/\n#endif\n",
        "\n#include <cmath> // \\ \n/*\nasm(0); /* */\n",
        "\n#define ATTRIBUTE_NO_SANITIZE_ADDRESS as\\\nm\n",
        "\n#define ATTRIBUTE_NO_SANITIZE_ADDRESS [\n",
        "f(1'0'\"', asm(nop), 1'0'\"'1'0);",
        # Other names of what is refused, and what reaches it.
        "execveat(0, 0, 0, 0, 0);",
        "open64(0, 0);",
        "PyRun_SimpleStringFlags(0, 0);",
        "PyObject_Call(0, 0, 0);",
        "__libc_dlopen_mode(0, 1);",
        "dlvsym(0, 0, 0);",
        "at::DynamicLibrary d(0);",
        "pybind11::exec(0);",
        "py :: eval(0);",
        "std::filesystem::remove_all(0);",
        "torch::jit::load(0);",
    ],
)
def test_cpp_that_templates_do_not_write_is_refused(code: str) -> None:
    check_cpp(KERNEL % "")
    with pytest.raises(NativeSourceRefused) as refused:
        check_cpp(KERNEL % code)
    assert len(str(refused.value)) < 500
    with pytest.raises(NativeSourceRefused):
        check_wrapper(f"async_compile.cpp_pybinding(['float*'], {(KERNEL % code)!r})\n")


@pytest.mark.parametrize(
    "code",
    [
        "import subprocess",
        "from os import system",
        "import torch.utils.cpp_extension",
        "from torch import *",
        "from . import x",
        "os.system('ls')",
        "__import__('os')",
        "eval('1')",
        "x = open('f')",
        "x = ().__class__",
        "torch.ops.load_library('x')",
        "torch.hub.load('x')",
        "x = f'{1}'",
        "x = b'a'",
        "x = 'a;b'",
        "x = 'a' 'b\"'",
        "getattr(torch, 'ops')",
        "def eval(): pass",
        "async def f(): pass",
        "from torch._inductor import codecache as c\nc.os.execv(1, 2)",
        "torch._inductor.codecache.subprocess.run(1)",
        "torch._inductor.codecache.sys.modules",
        "torch._inductor.codecache.builtins",
        "torch._inductor.codecache.pickle.loads(1)",
        "torch._inductor.codecache.shutil.rmtree(1)",
        "t = torch\nt.load(1)",
        "import torch as t\nt.load(1)",
        "import torch.ops as os",
        "from torch._inductor.utils import operator",
        "from torch._inductor.codecache import CppCodeCache",
        "match x:\n    case object(system=f):\n        f(1)",
        "try:\n    x\nexcept Exception as os:\n    x",
        "global os",
        "x = (",
        "x = " + "(" * 10_000,
    ],
)
def test_python_that_wrappers_do_not_have_is_refused(code: str) -> None:
    check_wrapper("import torch\nx = torch.ops.aten.add.Tensor(1, 2)\n")
    with pytest.raises(NativeSourceRefused):
        check_wrapper(f"import torch\n{code}\n")


TRITON = """
import triton
import triton.language as tl

from torch._inductor.runtime import triton_helpers, triton_heuristics
from torch._inductor.runtime.triton_helpers import libdevice, math as tl_math
from torch._inductor.runtime.hints import AutotuneHint, ReductionHint, TileHint, DeviceProperties
triton_helpers.set_driver_to_gpu()

@triton_heuristics.pointwise(
    size_hints={'x': 16},
    filename=__file__,
    triton_meta={'signature': {'in_ptr0': '*fp32', 'out_ptr0': '*fp32', 'xnumel': 'i32'},
                 'device': DeviceProperties(type='cuda', index=0, cc=90, major=9), 'constants': {},
                 'configs': [{(0,): [['tt.divisibility', 16]]}]},
    inductor_meta={'grid_type': 'Grid1D', 'kernel_name': 'triton_poi_fused_add_0'},
    min_elem_per_thread=0
)
@triton.jit
def triton_poi_fused_add_0(in_ptr0, out_ptr0, xnumel, XBLOCK : tl.constexpr):
    xoffset = tl.program_id(0) * XBLOCK
    xindex = xoffset + tl.arange(0, XBLOCK)[:]
    xmask = xindex < xnumel
    tmp0 = tl.load(in_ptr0 + (xindex), xmask)
    tl.device_assert((0 <= tmp0) & (tmp0 < 8), "index out of bounds: 0 <= tmp0 < 8")
    tl.store(out_ptr0 + (xindex), tmp0 + 1.0, xmask)
%s
"""
GPU = """
import torch
import triton
from torch._inductor.async_compile import AsyncCompile
from torch._C import _cuda_getCurrentRawStream as get_raw_stream
async_compile = AsyncCompile()
add_0 = async_compile.triton('triton_poi_fused_add_0', %r, device_str='cuda')
async_compile.wait(globals())
del async_compile
def call(args):
    with torch.cuda._DeviceGuard(0):
        torch.cuda.set_device(0)
        stream0 = get_raw_stream(0)
        add_0.run(args[0], args[1], 16, stream=stream0)
"""


def test_a_triton_kernel_inside_a_wrapper_is_read_too() -> None:
    check_wrapper(GPU % (TRITON % ""))
    for code in ("import subprocess", "    eval('1')", "    tl.static_print('a;b')"):
        with pytest.raises(NativeSourceRefused):
            check_wrapper(GPU % (TRITON % code))


def test_reading_takes_time_in_proportion() -> None:
    """Ten times the text does not take a hundred times the steps: no repeat is nested."""
    for part in ('R"(', '"a', "/*", "[[", "#define x \\\n", "((", "??", "__attribute__", "'"):
        with pytest.raises(NativeSourceRefused):
            check_cpp(part * 200_000 + "\0")
        with suppress(NativeSourceRefused):
            check_cpp(part * 200_000)


def bodies(function: Callable[..., Any], *inputs: Any, dynamic: bool = False) -> list[bytes]:
    """The graphs of a function as they go to a native worker."""
    found: list[bytes] = []

    def keep(module: torch.fx.GraphModule, example: list[Any]) -> Any:
        found.append(remembering.encode(flatten(module, example).module).body)
        return module.forward

    torch._dynamo.reset()
    with torch._dynamo.config.patch(specialize_float=True):
        torch.compile(function, backend=keep, dynamic=dynamic)(*inputs)
    return found


class Net(nn.Module):
    """Layers whose kernels differ: convolution, norms, attention, embedding, dropout, scatter."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 16)
        self.conv = nn.Conv1d(16, 16, 3, padding=1)
        self.norm = nn.BatchNorm1d(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.out = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4), nn.Dropout(0.1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv(self.embed(ids).transpose(1, 2))).transpose(1, 2)
        x, _ = self.attention(x, x, x)
        x = torch.zeros_like(x).index_add_(0, torch.arange(x.shape[0]), torch.nan_to_num(x))
        return torch.log_softmax(self.out(x), -1).cumsum(0)


@pytest.mark.long
@pytest.mark.parametrize("dynamic", [False, True])
def test_what_inductor_writes_is_taken(dynamic: bool) -> None:
    ids = torch.randint(0, 10, (3, 7))
    for body in bodies(Net(), ids, dynamic=dynamic):
        lowered = lower(body)
        assert lowered.refused == ""
        assert len(lowered.sources) > 4, lowered.said


@pytest.mark.long
def test_what_aot_inductor_writes_is_taken() -> None:
    size = torch.export.Dim("size", min=2, max=100)
    program = torch.export.export(
        Net().eval(), (torch.randint(0, 10, (3, 7)),), dynamic_shapes=({0: size},)
    )
    module = program.module(check_guards=False)
    with torch.no_grad():
        lowered = lower(remembering.encode(module).body, pb.ARTIFACT_KIND_AOT_INDUCTOR)
    assert lowered.refused == ""
    assert len(lowered.sources) >= 2, lowered.said


def asynchronous(x: torch.Tensor) -> torch.Tensor:
    torch._assert_async(x[0, 0] > 0, "positive")
    torch._assert_async(x[0, 1] > 0, "as positive")
    return x + 1


def scalar(x: torch.Tensor) -> torch.Tensor:
    size = int(x[0, 0].item())
    torch.ops.aten._assert_scalar(size > 0, "a size")
    torch.ops.aten._assert_scalar(size < 1000, "another size")
    return x + size


def profiled(x: torch.Tensor) -> torch.Tensor:
    with torch.profiler.record_function("a region"):
        return torch.relu(x) * 2


def words(x: torch.Tensor) -> torch.Tensor:
    y = torch.div(x, 2, rounding_mode="floor") + torch.einsum("ij,ij->i", x, x)[:, None]
    y = nn.functional.gelu(y, approximate="tanh").to("cpu")
    y = nn.functional.pad(y, (1, 1), mode="constant")
    return y.scatter_reduce(0, torch.zeros_like(y, dtype=torch.int64), y, reduce="amax")


def checkpointed(x: torch.Tensor) -> torch.Tensor:
    return torch.utils.checkpoint.checkpoint(asynchronous, x, use_reentrant=False)  # type: ignore[no-any-return]


SEEDS: tuple[Callable[..., Any], ...] = (asynchronous, scalar, profiled, words, checkpointed)


def test_source_that_is_not_inductors_is_an_internal_error_and_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a text did reach Inductor after all, nothing of it would be compiled."""
    monkeypatch.setattr(making, "without_texts", lambda body: body)
    # What a job changes for good in its process, it does not change in this one.
    monkeypatch.setattr(native_job, "redirect_compiles", lambda *_: None)
    monkeypatch.setattr(native_job, "_keep_to", lambda _: None)
    for name in ("_HEADER_DIR", "_HEADER_LOCK_DIR"):  # which the job moves, for its process
        monkeypatch.setattr(codecache, name, getattr(codecache, name))
    (body,) = bodies(asynchronous, torch.ones(3, 3))
    changed = graph_pb2.GraphBody.FromString(body)
    for place in range(len(changed.strings)):
        changed.strings[place] = f'"), 0)); asm(".incbin \\"{MARKER}\\""); ((void)("'
    job = worker.Job()
    job.native.kind = pb.ARTIFACT_KIND_INDUCTOR
    job.native.graph.graph.body = changed.SerializeToString()
    job.native.request.CopyFrom(native_request({torch.device("cpu")}, None, {}))
    job.native.progress = str(tmp_path / "progress")
    job.native.cache = str(tmp_path)
    answer = native_job.run_native_job(find_compiler(), Confinement(None), job.SerializeToString())
    result = worker.JobResult.FromString(answer)
    assert result.error.kind == worker.JOB_ERROR_KIND_SOURCE
    assert MARKER not in result.error.message
    assert not [f for f in tmp_path.rglob("*.cpp") if MARKER in f.read_text(errors="replace")]


def hostile_texts() -> list[str]:
    """Texts that break out of strings, comments and lines, each with the marker in it."""
    touch = f"system({MARKER})"
    return [
        MARKER,
        f'"); {touch}; ("',
        f'\\"); {touch}; (\\"',
        f"'+__import__('os').{touch}+'",
        f"'''+{touch}+'''",
        f'"""+{touch}+"""',
        f"*/ {touch} /*",
        f"\n#include <{MARKER}>\n",
        f"\r{touch}",
        f"{MARKER}\\",
        f"{MARKER}\0",
        f"??/\n{touch}",
        f'R"x({MARKER})x"',
        f"%{MARKER}s {{}} {{0}}",
        f"\u2028{touch}\u202e",
        f"{MARKER}" * 500,
        "\u00e9" + MARKER,
        f"'); asm({MARKER}); ('",
        f"{MARKER};",
        f"//{MARKER}",
    ]


def variations(count: int, seed: int) -> Iterator[bytes]:
    """Graphs with hostile text in the place of one, some or all of theirs."""
    chosen = random.Random(seed)
    with torch._dynamo.config.patch(capture_scalar_outputs=True):
        seeds = [body for function in SEEDS for body in bodies(function, torch.ones(3, 3))]
    texts = hostile_texts()
    for number in range(count):
        body = graph_pb2.GraphBody.FromString(seeds[number % len(seeds)])
        kind = chosen.random()
        if kind < 0.8 and body.strings:
            for place in chosen.sample(range(len(body.strings)), chosen.choice([1, 1, 1, 2])):
                body.strings[place] = chosen.choice(texts)
        elif kind < 0.85:
            chosen.choice(body.targets).name = chosen.choice(texts)
        else:
            row = chosen.choice([row for row in body.calls if row.args])
            argument = row.args.add()
            argument.text = len(body.strings)
            body.strings.append(chosen.choice(texts))
        yield body.SerializeToString()


def fuzz(count: int, seed: int) -> None:
    lowered_at_all = 0
    chosen = random.Random(seed)
    for body in variations(count, seed):
        kind = chosen.choice([pb.ARTIFACT_KIND_INDUCTOR, pb.ARTIFACT_KIND_AOT_INDUCTOR])
        lowered = lower(body, kind)
        assert lowered.refused == ""
        assert not any(MARKER in source for source in lowered.sources)
        lowered_at_all += bool(lowered.sources)
    assert lowered_at_all > count / 4, "most were refused before Inductor wrote anything"


def test_hostile_text_in_every_place_reaches_no_source() -> None:
    fuzz(12, seed=1)


@pytest.mark.slow
def test_hostile_text_in_every_place_reaches_no_source_2000_times() -> None:
    fuzz(2000, seed=2)
