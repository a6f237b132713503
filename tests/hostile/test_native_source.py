"""Checks of generated native source: what Inductor's templates never write is refused."""

from __future__ import annotations

from contextlib import suppress

import pytest

from lazyfx_server.security.native_source import NativeSourceRefused, check_cpp, check_wrapper

INCLUDE = "#include <torch/csrc/inductor/cpp_prefix.h>\n"
KERNEL = INCLUDE + 'extern "C"  void  kernel(float* p)\n{\n    p[0] = 1.0f;\n%s\n}\n'


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
