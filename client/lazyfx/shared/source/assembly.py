"""Generates the Python source of a GraphModule and its nested ones, without executing it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch.fx import Graph, GraphModule
from torch.fx.graph_module import _format_import_block
from torch.package.importer import sys_importer

from lazyfx.shared.source.definitions import definitions


@dataclass(frozen=True, slots=True)
class GeneratedSource:
    """Python source of a GraphModule.

    Attributes:
        code: The text of `GraphModule.code`.
        import_block: The imports that the code needs, as written by torch.fx.
        children: The same for each nested GraphModule, by dotted path.
    """

    code: str
    import_block: str
    children: Mapping[str, GeneratedSource] = field(default_factory=dict)


def generate(module: GraphModule) -> GeneratedSource:
    """Generates the source of a module and of its nested GraphModules.

    This is the expensive half of `GraphModule.recompile`; nothing is executed.
    """
    children = {
        path: GeneratedSource(*_text(child.graph))
        for path, child in module.named_modules()
        if path and isinstance(child, GraphModule)
    }
    return GeneratedSource(*_text(module.graph), children)


def _text(graph: Graph) -> tuple[str, str]:
    generated = graph.python_code(root_module="self")
    own = definitions(generated.globals)
    imported = {name: value for name, value in generated.globals.items() if name not in own}
    block = _format_import_block(imported, sys_importer)
    return generated.src, "\n".join([block, *own.values()])
