"""The closed vocabulary of build requests: flags, libraries, headers, and assembler lines.

It is what torch 2.11 to 2.13 pass to g++ and clang++ on Linux. Anything else is refused: in the
worker that asks, in the server, and in the worker that compiles.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from lazyfx_server.v1 import worker_pb2 as worker

MAX_SOURCE_BYTES: Final = 32 << 20
MAX_OBJECTS: Final = 64

_DEFINITIONS: Final = (
    "AOT_INDUCTOR_USE_CACHING_ALLOCATOR", "AT_BUILD_ARM_VEC256_WITH_SLEEF",
    "C10_USING_CUSTOM_GENERATED_MACROS", "CPU_CAPABILITY_AMX", "CPU_CAPABILITY_AVX2",
    "CPU_CAPABILITY_AVX512", "CPU_CAPABILITY_NEON", "CPU_CAPABILITY_SVE",
    "CPU_CAPABILITY_SVE128", "CPU_CAPABILITY_SVE256", "NDEBUG", "STANDALONE_TORCH_HEADER",
    "TORCH_INDUCTOR_CPP_WRAPPER", "TORCH_INDUCTOR_PRECOMPILE_HEADERS", "USE_CUDA",
    "USE_MMAP_EXTERNAL", "USE_MMAP_SELF", "__ARM_FEATURE_BF16",
)  # fmt: skip
_MACHINE: Final = (
    "-mamx-bf16", "-mamx-fp16", "-mamx-int8", "-mamx-tile", "-march=armv8-a+sve+bf16",
    "-march=armv8.6-a+sve+bf16", "-march=armv8.6-a+sve+sve2+bf16",
    "-march=armv9-a+sve2+fp16fml+sha3+bf16+i8mm", "-march=native", "-mavx2", "-mavx512bf16",
    "-mavx512bw", "-mavx512dq", "-mavx512f", "-mavx512fp16", "-mavx512vl", "-mavx512vnni",
    "-mavx10.2", "-mf16c", "-mfma", "-msve-vector-bits=128", "-msve-vector-bits=256",
)  # fmt: skip
_OTHERS: Final = (
    "-O0", "-O1", "-O2", "-O3", "-Os", "-Wall", "-Wno-ignored-optimization-argument",
    "-Wno-unknown-pragmas", "-Wno-unused-variable", "-fPIC", "-fexcess-precision=fast",
    "-ffinite-math-only", "-ffp-contract=fast", "-ffp-contract=off", "-ffp-contract=on",
    "-fmath-errno", "-fno-finite-math-only", "-fno-math-errno", "-fno-omit-frame-pointer",
    "-fno-signed-zeros", "-fno-tree-loop-vectorize", "-fno-trapping-math",
    "-fno-unsafe-math-optimizations", "-fopenmp", "-funsafe-math-optimizations", "-g", "-g1",
    "-gline-tables-only", "-pedantic", "-std=c++17", "-std=c++20",
)  # fmt: skip

FLAGS: Final = frozenset([f"-D{name}" for name in _DEFINITIONS] + [*_MACHINE, *_OTHERS])
LIBRARIES: Final = frozenset(
    ("c10", "c10_cuda", "cuda", "gomp", "torch", "torch_cpu", "torch_cuda", "torch_python")
)
HEADERS: Final = frozenset(
    ["torch/csrc/inductor/cpp_prefix.h"]
    + [
        f"torch/csrc/inductor/{folder}/{name}.h"
        for folder in ("aoti_include", "cpp_wrapper")
        for name in ("array_ref", "cpu", "cuda")
    ]
)

_NAME = r"[A-Za-z_][A-Za-z0-9_]{0,200}"
_ASSEMBLER: Final = re.compile(
    r'\s*(\.section\s+\.(l?data|l?rodata)(,\s*"[aw]{1,2}")?(,\s*@progbits)?|\.(data|rodata)|'
    rf"\.(balign|align|p2align)\s+\d{{1,6}}|\.globl\s+{_NAME}|{_NAME}:|"
    r"\.byte\s+\d{1,3}|\.space\s+\d{1,12}|\.quad\s+0x[0-9a-f]{1,16})?\s*"
)


class RequestRefused(Exception):  # noqa: N818 - reads as what happened
    """A build request contains something outside the vocabulary; the message names it."""


def check_build_request(request: worker.BuildRequest) -> None:
    """Check that a request only uses the vocabulary.

    Its C++ source is checked when it is compiled, by `security.native_source`.

    Raises:
        RequestRefused: Names the first unknown word.
    """
    kinds = (
        worker.BUILD_KIND_OBJECT, worker.BUILD_KIND_LIBRARY, worker.BUILD_KIND_DATA,
        worker.BUILD_KIND_LINK,
    )  # fmt: skip
    if request.kind not in kinds:
        raise RequestRefused(f"unknown kind of compile: {request.kind}")
    _require_known(request.flags, FLAGS, "flag")
    _require_known(request.libraries, LIBRARIES, "library")
    if request.header:
        _require_known([request.header], HEADERS, "header")
    if len(request.source) > MAX_SOURCE_BYTES:
        raise RequestRefused(f"the source is too large: {len(request.source)} bytes")
    linked = request.kind == worker.BUILD_KIND_LINK
    if linked == bool(request.source) or linked != bool(request.objects):
        raise RequestRefused("a link takes objects; every other compile takes a source")
    if len(request.objects) > MAX_OBJECTS:
        raise RequestRefused(f"{len(request.objects)} objects are too many")
    if request.kind == worker.BUILD_KIND_DATA:
        check_assembler(request.source)


def check_assembler(source: bytes) -> None:
    """Check that assembler source contains only named data, and no instructions.

    Raises:
        RequestRefused: Shows the first invalid line.
    """
    try:
        text = source.decode("ascii")
    except UnicodeDecodeError as error:
        raise RequestRefused("the assembler source is not ASCII") from error
    for line in text.split("\n"):
        if not _ASSEMBLER.fullmatch(line):
            raise RequestRefused(f"the assembler source contains {line[:80]!r}")


def _require_known(words: Iterable[str], known: frozenset[str], what: str) -> None:
    for word in words:
        if word not in known:
            raise RequestRefused(f"the {what} {word[:80]!r} is not allowed")
