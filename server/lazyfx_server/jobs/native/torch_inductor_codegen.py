"""Private names of torch's Inductor that only the server needs; imported only here."""

# ruff: noqa: SLF001 - that is what this file is for

from __future__ import annotations

import inspect
import io
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch._dynamo.source import ConstantSource
from torch._functorch import aot_autograd
from torch._functorch._aot_autograd import graph_compile
from torch._guards import TracingContext, tracing
from torch._inductor import (
    aot_compile,
    codecache,
    compile_fx,
    cpp_builder,
    cpu_vec_isa,
    standalone_compile,
)
from torch._inductor.exc import CppCompileError
from torch._inductor.fx_passes import joint_graph
from torch._inductor.fx_passes.joint_graph import UniformValueConstantFolder
from torch._inductor.utils import ALIGN_BYTES, clear_caches
from torch._inductor.virtualized import V
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.pt2_archive._package import package_pt2
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from lazyfx.shared.native.torch_inductor import functorch_config, inductor_config

__all__ = ["CppCompileError"]

_PARAMETERS = inspect.signature(standalone_compile).parameters

# torch writes an artifact only if it can compute a cache key for the graph, and it cannot with a
# torch.autograd.Function, autocast, or most operators that take graphs. Its cache is a folder of
# this job alone, and we do not look results up by torch's key, so any key will do. A failure to
# write is an error here, not just a line in torch's log.
_WRITTEN = {"bypass_autograd_cache_key": True, "strict_autograd_cache": True}

_CPP = ("cpp", "cu", "cc", "cxx")


def replace_programs(
    *,
    run_command: Callable[[str, str], None],
    precompile_header: Callable[..., str],
    compiler: str,
    subprocess: Any,
) -> None:
    """Replace every program that Inductor starts for C++.

    Args:
        run_command: Takes a command line and its folder, like `run_compile_cmd` of cpp_builder.
        precompile_header: Takes a header's name, and returns a path to include it by.
        compiler: The name of the compiler that Inductor would look for.
        subprocess: Replaces that module where Inductor queries a compiler.
    """
    for module, name, value in (
        (cpp_builder, "run_compile_cmd", run_command),
        (cpp_builder, "cpp_compiler_search", lambda _search: compiler),
        (codecache, "_precompile_header", precompile_header),
        (cpp_builder, "subprocess", subprocess),
        (cpu_vec_isa, "subprocess", subprocess),
        (codecache, "subprocess", subprocess),
    ):
        getattr(module, name)  # raises if torch has moved it
        setattr(module, name, value)


@contextmanager
def observing_sources(
    on_cpp: Callable[[str], None], on_python: Callable[[str], None]
) -> Iterator[None]:
    """Observe every source that Inductor writes within the block, before it is compiled or run.

    torch writes all of them through one function. Sources of Triton kernels are part of a Python
    source.

    Args:
        on_cpp: Called with each C++ source; if it raises, the source is not written.
        on_python: The same for Python.
    """
    original = codecache.write

    def write(content: Any, extension: str, *args: Any, **kwargs: Any) -> Any:
        if isinstance(content, str) and extension.endswith(_CPP):
            on_cpp(content)
        elif extension == "py":
            on_python(content)
        return original(content, extension, *args, **kwargs)

    with _patched(codecache, "write", write):
        yield


def compile_ahead(
    module: GraphModule,
    inputs: Sequence[Any],
    mode: FakeTensorMode,
    patches: Mapping[str, Any],
) -> bytes | None:
    """Compile forward and, with gradients, backward; return torch's bytes of both.

    Args:
        module: Consumed.
        inputs: Fake tensors of `mode`.
        mode: With a ShapeEnv.
        patches: Settings of Inductor.

    Returns:
        None if torch cannot write the artifact.
    """
    given: dict[str, Any] = {"dynamic_shapes": "from_example_inputs", "aot": True}
    with (
        inductor_config.patch(dict(patches)),
        functorch_config.patch(_WRITTEN),
        _patched(graph_compile, "collect_bw_donated_buffer_idxs", _none_donated),
    ):
        if "fake_mode" in _PARAMETERS:
            artifact: Any = standalone_compile(
                module, list(inputs), fake_mode=mode, donate_graph_module=True, **given
            )
        else:
            artifact = _compile_before_2_12(module, inputs, mode)
        # If torch does not cache the result, there is nothing to write.
        if getattr(artifact.inner_fn, "serialize", None) is None:
            return None
        data: bytes = artifact.serialize()
        return data


@contextmanager
def compiling_for_nobody() -> Iterator[None]:
    """Within the block, nothing is recorded that a later compile of this process would depend on.

    Inductor picks vector instructions without a C++ compiler, which it would run as a probe and
    whose answer it would remember.
    """
    usable = [isa for isa in cpu_vec_isa.supported_vec_isa_list if str(isa) == "avx2"]
    if not set(map(str, usable)) <= set(cpu_vec_isa.x86_isa_checker()):
        usable = []
    with (
        _patched(cpu_vec_isa, "valid_vec_isa_list", lambda: usable),
        _patched(aot_autograd, "AOT_COUNTER", itertools.count()),
        inductor_config.patch({"cpp.vec_isa_ok": True}),
    ):
        try:
            yield
        finally:
            codecache.PyCodeCache.cache_clear(purge=True)
            clear_caches()  # such as that of the path of the cache folder


def _none_donated(*_: Any, **__: Any) -> list[int]:
    """Disable donation of saved tensors to the backward.

    torch compiles a backward on its first call, when it knows whether the graph is retained
    (`retain_graph=True`). Here that is unknown, and a backward that overwrites saved tensors could
    only be called once.
    """
    return []


def _compile_before_2_12(module: GraphModule, inputs: Sequence[Any], mode: FakeTensorMode) -> Any:
    """Before torch 2.12, standalone_compile takes no mode and compiles the backward lazily."""
    with (
        tracing(TracingContext(mode)),
        functorch_config.patch(force_non_lazy_backward_lowering=True),
    ):
        return standalone_compile(
            module, list(inputs), dynamic_shapes="from_tracing_context", aot=True
        )


@dataclass(frozen=True, slots=True)
class AotResult:
    """The output of AOTInductor.

    Attributes:
        archive: A .pt2 archive whose file of values is empty.
        constants: Paths of the tensors whose values belong in that file, and the size of each in
            bytes.
        writes: Whether it writes to its inputs or constants.
    """

    archive: bytes
    constants: tuple[tuple[str, int], ...]
    writes: bool


def compile_package(
    module: GraphModule, inputs: Sequence[Any], patches: Mapping[str, Any]
) -> AotResult:
    """Compile a graph for inference to a package to which weights are added later.

    For a "binary_blob", torch reads the values of constants and writes them to a separate file.
    Here they are fake: torch is told that there are none to write, and what the size of the file
    will be.

    Args:
        module: Its tensors are fake, its outputs a tuple; `_in_spec` and `_out_spec` are set.
        inputs: Fake tensors of the same mode.
        patches: Settings of Inductor.
    """
    settings = {
        "aot_inductor.package": True,
        "aot_inductor.package_constants_in_so": False,
        # Constants are neither inlined nor compared, and folded when the package is loaded.
        "aot_inductor.use_runtime_constant_folding": True,
        **patches,
    }
    constants: list[tuple[str, int]] = []

    def values_are_elsewhere(_size: int) -> tuple[bool, bool]:
        constants.extend(_constants_in_order())
        return bool(constants), False

    def size_of_all(format: str, *values: int) -> bytes:  # noqa: A002 - as struct.pack
        if values == (0,):
            values = (sum(size for _, size in constants),)
        return struct.pack(format, *values)

    fold = compile_fx.split_const_gm
    written: list[bool] = []

    def fold_unless_written(module: GraphModule, *args: Any, **kwargs: Any) -> Any:
        # Values folded from a tensor at load time would not change when the tensor is written
        # later.
        written.append(writes(module))
        if written[-1]:
            kwargs["skip_folding_node_fn"] = lambda _node: True
        return fold(module, *args, **kwargs)

    with (
        _patched(compile_fx, "split_const_gm", fold_unless_written),
        _patched(joint_graph, "UniformValueConstantFolder", _LiteralConstantFolder),
        _patched(codecache, "determine_aoti_mmap_flags", values_are_elsewhere),
        _patched(codecache, "struct", SimpleNamespace(pack=size_of_all)),
    ):
        files: Any = aot_compile(module, tuple(inputs), options=settings)
    archive = io.BytesIO()
    package_pt2(archive, aoti_files={"model": files})
    return AotResult(archive.getvalue(), tuple(constants), any(written))


class _LiteralConstantFolder(UniformValueConstantFolder):
    """Folds only expressions of literals.

    torch's folder also reads one-element tensors, whose values are not here, and treats tensors
    that the graph writes as constants.
    """

    def _deduce_value(self, node: Node) -> Any:
        return self.unknown_value if node.op == "get_attr" else super()._deduce_value(node)


def writes(module: GraphModule) -> bool:
    """Whether a graph, or one inside it, calls an operator that writes into an argument."""
    return any(
        isinstance(node.target, OpOverload) and node.target._schema.is_mutable
        for part in module.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
    )


@contextmanager
def _patched(module: ModuleType, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module of torch within the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _constants_in_order() -> list[tuple[str, int]]:
    """Paths and sizes of constants, in the layout of AOTInductor's own code."""
    graph: Any = V.graph
    names = [name for name in graph.constants if name not in graph.folded_constants]
    tensors = [graph.get_original_value_of_constant(name) for name in names]
    unit = 1 if all(tensor.is_cuda for tensor in tensors) else ALIGN_BYTES
    return [
        (graph.allocated_constant_name[name], -(-tensor.untyped_storage().nbytes() // unit) * unit)
        for name, tensor in zip(names, tensors, strict=True)
    ]


def fresh_fake_mode() -> FakeTensorMode:
    """A fake mode with a new ShapeEnv."""
    return FakeTensorMode(shape_env=ShapeEnv())


def known_size(value: int, env: ShapeEnv) -> torch.SymInt:
    """Replace an input symbol by its value, if tracing found that it has only one.

    Inductor removes plain-number inputs from nested graphs, and then finds that they take one
    argument more than they are passed.
    """
    symbol = env.create_symbol(
        value,
        ConstantSource(f"lazyfx_known_{len(env.var_to_range)}"),
        dynamic_dim=DimDynamic.DYNAMIC,
        do_not_specialize_zero_one=True,
        positive=None,
    )
    number = env.create_symintnode(symbol, hint=value)
    assert isinstance(number, torch.SymInt), "the symbol stands for an input"
    int(number)
    return number
