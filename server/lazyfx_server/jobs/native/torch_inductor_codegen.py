"""Names of torch's Inductor that only a server needs, imported here and nowhere else."""

# ruff: noqa: SLF001 - that is what this file is for

from __future__ import annotations

import inspect
import io
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch._dynamo.source import ConstantSource
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
from torch._inductor.utils import ALIGN_BYTES
from torch._inductor.virtualized import V
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export.pt2_archive._package import package_pt2
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv

from lazyfx.shared.native.torch_inductor import functorch_config, inductor_config

__all__ = ["CppCompileError"]

_PARAMETERS = inspect.signature(standalone_compile).parameters

# torch writes an artifact only for a graph that it can make a cache key of: none with a
# torch.autograd.Function, with autocast, or with most operators that take graphs. Its cache is a
# folder of this one job, and the key under which the result is found is not torch's, so where it
# has no key it may take any. What goes wrong when it writes is an error, not a line of its log.
_WRITTEN = {"bypass_autograd_cache_key": True, "strict_autograd_cache": True}

_CPP = ("cpp", "cu", "cc", "cxx")


def replace_programs(
    *,
    run_command: Callable[[str, str], None],
    precompile_header: Callable[..., str],
    compiler: str,
    subprocess: Any,
) -> None:
    """Put something in the place of every program that Inductor starts for C++.

    Args:
        run_command: Takes a command line and its folder, as `run_compile_cmd` of cpp_builder.
        precompile_header: Takes a header's name, and returns a path to include it by.
        compiler: The name of the compiler that it would look for.
        subprocess: In the place of that module, where a compiler is asked about itself.
    """
    for module, name, value in (
        (cpp_builder, "run_compile_cmd", run_command),
        (cpp_builder, "cpp_compiler_search", lambda _search: compiler),
        (codecache, "_precompile_header", precompile_header),
        (cpp_builder, "subprocess", subprocess),
        (cpu_vec_isa, "subprocess", subprocess),
        (codecache, "subprocess", subprocess),
    ):
        getattr(module, name)  # torch has moved it where this raises
        setattr(module, name, value)


@contextmanager
def observing_sources(
    on_cpp: Callable[[str], None], on_python: Callable[[str], None]
) -> Iterator[None]:
    """See every source that Inductor writes within the block, before it is compiled or run.

    All of them go through one function of torch on their way to a file. What Triton kernels are
    made of stands in a Python source, too.

    Args:
        on_cpp: Called with each C++ source; what it raises keeps the source from being written.
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
        module: Is used up.
        inputs: Fake, of `mode`.
        mode: With a ShapeEnv.
        patches: Settings of Inductor.

    Returns:
        None when torch cannot write the artifact.
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
        # What torch would not put into its cache has nothing to be written.
        if getattr(artifact.inner_fn, "serialize", None) is None:
            return None
        data: bytes = artifact.serialize()
        return data


def _none_donated(*_: Any, **__: Any) -> list[int]:
    """No saved tensor is given away to the backward.

    torch compiles a backward when it is first called, and knows then whether the graph is kept
    for another (`retain_graph=True`). Here that is not known yet, and one that writes into what was
    saved could be called once only.
    """
    return []


def _compile_before_2_12(module: GraphModule, inputs: Sequence[Any], mode: FakeTensorMode) -> Any:
    """The same where standalone_compile takes no mode and leaves the backward for later."""
    with (
        tracing(TracingContext(mode)),
        functorch_config.patch(force_non_lazy_backward_lowering=True),
    ):
        return standalone_compile(
            module, list(inputs), dynamic_shapes="from_tracing_context", aot=True
        )


@dataclass(frozen=True, slots=True)
class AotResult:
    """What AOTInductor made.

    Attributes:
        archive: A .pt2 archive whose file of values is empty.
        constants: Paths of the tensors whose values belong there, and the bytes of each.
        writes: Whether it writes into tensors that it is given or holds.
    """

    archive: bytes
    constants: tuple[tuple[str, int], ...]
    writes: bool


def compile_package(
    module: GraphModule, inputs: Sequence[Any], patches: Mapping[str, Any]
) -> AotResult:
    """Compile a graph for inference to a package whose weights are put in later.

    torch writes the values of constants into a file of their own when it is asked for a
    "binary_blob", and for that it reads them. Here they are fake: torch is told that there are
    none to write, and that the file will be as long as it is going to be.

    Args:
        module: Its tensors are fake, its outputs a tuple; `_in_spec` and `_out_spec` are set.
        inputs: Fake, of the same mode.
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
        # What is computed from a tensor when the package is loaded stays as it was then.
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
    """Folds what is computed from literals alone.

    torch's reads tensors of one element too: their values are not here, and it takes one that
    the graph writes for a constant.
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
    """Something else under a name of a module of torch within the block."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _constants_in_order() -> list[tuple[str, int]]:
    """Paths and sizes as AOTInductor's own code lays the values out."""
    graph: Any = V.graph
    names = [name for name in graph.constants if name not in graph.folded_constants]
    tensors = [graph.get_original_value_of_constant(name) for name in names]
    unit = 1 if all(tensor.is_cuda for tensor in tensors) else ALIGN_BYTES
    return [
        (graph.allocated_constant_name[name], -(-tensor.untyped_storage().nbytes() // unit) * unit)
        for name, tensor in zip(names, tensors, strict=True)
    ]


def fresh_fake_mode() -> FakeTensorMode:
    """A mode with a ShapeEnv of its own."""
    return FakeTensorMode(shape_env=ShapeEnv())


def known_size(value: int, env: ShapeEnv) -> torch.SymInt:
    """An input that was a symbol until tracing found that it has one value only.

    Inductor takes an input that is a plain number out of graphs inside a graph, and then finds
    that they have one argument more than they are given.
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
