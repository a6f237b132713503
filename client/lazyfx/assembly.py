"""A pickle or a torch.package of a GraphModule, put together from source that is already there.

`GraphModule.__reduce__` generates Python code each time it is called, even when
nothing changed. Here the code is an argument: what is written is what torch
would have written, and it loads in a process that has torch and nothing of ours.

The format is torch's own, with torch's own limits: loading traces the code
symbolically, so a call without tensor operands (a random tensor, a grad-mode
switch) runs while loading. A graph artifact has no such limit.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MethodType
from typing import Any

import torch
from torch.fx import Graph, GraphModule
from torch.fx.graph_module import (
    _format_import_block,
    reduce_graph_module,
    reduce_package_graph_module,
)
from torch.package.importer import sys_importer
from torch.package.package_exporter import PackageExporter

from lazyfx.definitions import definitions

PACKAGE_NAME = "module"
RESOURCE_NAME = "module.pkl"

# What a GraphModule holds beside its code and its attributes. torch rebuilds
# all of it when it loads a module, so writing it would only add things that may
# not pickle.
_REBUILT_ON_LOAD = (
    "_graph",
    "meta",
    "shape_env",
    "_replace_hooks",
    "_create_node_hooks",
    "_erase_node_hooks",
    "_deepcopy_hooks",
    "_lineno_map",
    "_prologue_start",
)


@dataclass(frozen=True, slots=True)
class GeneratedSource:
    """Python source of a GraphModule.

    Attributes:
        code: The text of `GraphModule.code`.
        import_block: The imports that the code needs, as torch.fx writes them before it.
        children: The same for each GraphModule inside, by its dotted path.
    """

    code: str
    import_block: str
    children: Mapping[str, GeneratedSource] = field(default_factory=dict)


def generate(module: GraphModule) -> GeneratedSource:
    """Generates the source of a module and of the GraphModules inside it.

    This is the expensive half of `GraphModule.recompile`; nothing is executed.
    """
    children = {
        path: GeneratedSource(*_text(child.graph))
        for path, child in module.named_modules()
        if path and isinstance(child, GraphModule)
    }
    return GeneratedSource(*_text(module.graph), children)


def pickle_module(module: GraphModule, source: GeneratedSource) -> bytes:
    """Pickles a module around source generated earlier.

    Args:
        module: The module; its parameters are written as they are, meta tensors too.
        source: Its source. A child that `source.children` leaves out is generated.

    Returns:
        Bytes for `pickle.loads` in any process with this torch.
    """
    buffer = io.BytesIO()
    pickle.Pickler(buffer, protocol=4).dump(_stand_in(module, source, "", {}))
    return buffer.getvalue()


def package_module(module: GraphModule, source: GeneratedSource) -> bytes:
    """Writes a torch.package archive around source generated earlier.

    Args:
        module: The module; its parameters are written as they are.
        source: Its source. A child that `source.children` leaves out is generated.

    Returns:
        An archive; `PackageImporter(...).load_pickle("module", "module.pkl")` loads it.
    """
    buffer = io.BytesIO()
    with PackageExporter(buffer) as exporter:
        # Types of the caller's own outputs (transformers' ModelOutput) are theirs to install.
        exporter.extern("**")
        exporter.save_pickle(PACKAGE_NAME, RESOURCE_NAME, _stand_in(module, source, "", {}))
    return buffer.getvalue()


def _text(graph: Graph) -> tuple[str, str]:
    generated = graph.python_code(root_module="self")
    own = definitions(generated.globals)
    imported = {name: value for name, value in generated.globals.items() if name not in own}
    block = _format_import_block(imported, sys_importer)
    return generated.src, "\n".join([block, *own.values()])


class _BufferTracer:
    """Pickles as a Tracer class that keeps buffers as graph inputs.

    torch's default tracer runs calls whose only operands are buffers while it
    loads: `num_batches_tracked.add_(1)` would happen once, at load, and never
    again, and a slice of a buffer would be baked in. The class is made by the
    pickle itself, so that it needs nothing of ours; its qualified name tells
    GraphModule not to keep it, so that the loaded module pickles again.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        members = {
            "proxy_buffer_attributes": True,
            "__module__": "torch.fx",
            "__qualname__": "load.<locals>.Tracer",
        }
        return (type, ("Tracer", (torch.fx.Tracer,), members))


class _StandIn:
    """Takes a GraphModule's place in a pickle and is written as torch writes the module."""

    def __init__(self, module: GraphModule, source: GeneratedSource) -> None:
        self._class_name = type(module).__name__
        self._source = source
        # torch.export gives its modules methods of their own, bound to the module itself.
        body = {
            k: v
            for k, v in module.__dict__.items()
            if k not in _REBUILT_ON_LOAD and not isinstance(v, MethodType)
        }
        # torch drops hooks when it loads a module; most would not pickle.
        body.update({k: OrderedDict() for k in body if "_hooks" in k})
        body["_code"] = source.code
        # A tracer of torch.export or of a local scope cannot be built by the reader.
        body["_tracer_cls"] = _BufferTracer() if any(True for _ in module.buffers()) else None
        body["_tracer_extras"] = {}
        # Set by a codegen with a calling convention of its own (torch.export).
        signature = getattr(module.graph._codegen, "pytree_info", None)  # noqa: SLF001 - no public way
        if signature is not None:
            body["_in_spec"] = signature.in_spec
            body["_out_spec"] = signature.out_spec
        self.body = body

    def __reduce__(self) -> tuple[Any, ...]:
        return (reduce_graph_module, (self.body, self._source.import_block))

    def __reduce_package__(self, exporter: PackageExporter) -> tuple[Any, ...]:
        name = f"fx-generated._{exporter.get_unique_id()}"
        exporter.save_source_string(name, self._source.import_block + self._source.code)
        body = {**self.body, "_graphmodule_cls_name": self._class_name}
        return (reduce_package_graph_module, (body, name))


def _stand_in(
    module: torch.nn.Module, source: GeneratedSource, path: str, made: dict[int, object]
) -> object:
    """Copies the tree of modules as far down as it holds GraphModules, tensors shared."""
    if id(module) in made:
        return made[id(module)]
    if isinstance(module, GraphModule):
        own = source if not path else source.children.get(path) or generate(module)
        stand_in = _StandIn(module, own)
        made[id(module)] = stand_in
        stand_in.body["_modules"] = _children(module, source, path, made)
        return stand_in
    if not any(isinstance(child, GraphModule) for child in module.modules()):
        return module
    copied = type(module).__new__(type(module))
    made[id(module)] = copied
    copied.__dict__ = dict(module.__dict__)
    copied.__dict__["_modules"] = _children(module, source, path, made)
    return copied


def _children(
    module: torch.nn.Module, source: GeneratedSource, path: str, made: dict[int, object]
) -> dict[str, object]:
    prefix = f"{path}." if path else ""
    return {
        name: None if child is None else _stand_in(child, source, prefix + name, made)
        for name, child in module._modules.items()  # noqa: SLF001 - keeps None entries
    }
