"""Writes the text of a Python file that runs a graph."""

# ruff: noqa: SLF001 - code generators and operators have no public reader

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Mapping
from typing import Final

import torch
from torch.fx import GraphModule, Node

from lazyfx.artifacts.python_files.graph_state import State
from lazyfx.artifacts.python_files.value_expressions import REMEDY, constructor, literal, spec
from lazyfx.errors import ArtifactError, UnsupportedGraphError
from lazyfx.shared.formats.pickling.callables import registering_module
from lazyfx.shared.formats.pickling.torch_rebuild import pytree_info_of
from lazyfx.shared.source.assembly import GeneratedSource
from lazyfx.shared.wire.targets.operator_schemas import operator_of

# Higher-order operators that only call their function. Others inspect its graph, which a Python
# function does not have.
_CALLING: Final = frozenset(
    {
        *("associative_scan", "cond", "flex_attention", "map_impl", "scan", "while_loop"),
        *("wrap", "wrap_with_autocast", "wrap_with_set_grad_enabled"),
    }
)

# torch.fx uses these marks for tracing, and the file is not traced.
_WRAPPED: Final = re.compile(r"^torch\.fx\.wrap\('\w+'\)$", re.MULTILINE)

# The `torch.load` in it reads the user's own file, of tensors only (the default since torch 2.6).
_HEAD: Final = '''"""A graph that lazyfx compiled, for torch {version} alone.

    import torch
    from {name} import Module

    module = Module(model)  # the torch.nn.Module that was compiled: its tensors are used; or
    module = Module(torch.load("state.pt"))  # its state_dict, or any mapping of names to tensors
    module(...)  # takes and returns what the graph does
"""

import pathlib
from collections.abc import Mapping

import torch
from torch.utils import _pytree

'''

_BINDING: Final = '''

def _owner(module, path):
    """The module that holds what is at a dotted path, made on the way, and its name there."""
    *parents, name = path.split(".")
    for parent in parents:
        if parent not in module._modules:
            module.add_module(parent, torch.nn.Module())
        module = module._modules[parent]
    return module, name


def _find(root, name):
    """A tensor of the original model, or of a mapping; None where it is not there."""
    if isinstance(root, Mapping):
        if name in root:
            return root[name]
        heads = (name.split(".", count)[:count] for count in range(1, name.count(".") + 1))
        head = next((h for h in heads if isinstance(root.get(".".join(h)), torch.nn.Module)), None)
        if head is None:
            return None
        root, name = root[".".join(head)], name[len(".".join(head)) + 1 :]
    for part in name.split("."):
        root = getattr(root, part, None)
    return root


def _bind(module, path, role, requires_grad, tensor):
    if isinstance(tensor, torch.nn.Parameter) and role != "parameter":
        tensor = tensor.detach()
    if role == "parameter" and not isinstance(tensor, torch.nn.Parameter):
        tensor = torch.nn.Parameter(tensor, requires_grad=requires_grad)
    owner, name = _owner(module, path)
    if role == "buffer" and name not in owner._buffers:
        owner.register_buffer(name, tensor)
    else:
        setattr(owner, name, tensor)


class Module(torch.nn.Module):
    """The graph.

    Args:
        root: The model that was compiled, an ExportedProgram of it, or a mapping of names to
            tensors or modules, such as its state_dict. Its tensors are used, not copied.

    Raises:
        LookupError: A tensor is not in it; names the tensor.
    """

    forward = _forward_0()
'''

_INIT: Final = """
    def __init__(self, root=None):
        super().__init__()
        if isinstance(root, torch.export.ExportedProgram):
            root = {**root.constants, **root.state_dict}
        for path, make in _GRAPHS.items():
            owner, name = _owner(self, path)
            graph = make()
            graph._modules.update(owner._modules[name]._modules if name in owner._modules else {})
            owner.add_module(name, graph)
        for path, (make, training) in _LEAVES.items():
            owner, name = _owner(self, path)
            with torch.device("meta"):
                owner.add_module(name, make().train(training))
        for path, value in _LITERALS.items():
            owner, name = _owner(self, path)
            setattr(owner, name, value)
        held = _constants()
        for path, (role, requires_grad, source) in _TENSORS.items():
            tensor = _find(root, source) if source else held.get(path)
            if not isinstance(tensor, torch.Tensor):
                raise LookupError(f"there is no tensor {source or path!r}: give the model that was "
                                  "compiled, or a mapping with this name")
            _bind(self, path, role, requires_grad, tensor)
"""


def write_text(
    module: GraphModule, source: GeneratedSource, state: State, name: str, constants: str
) -> str:
    """Write the text of a file.

    Args:
        module: The compiled graph.
        source: Its checked source.
        state: Its state.
        name: Name of the file without its suffix.
        constants: Name of its constants file; "" if there is none.

    Raises:
        UnsupportedGraphError: Something cannot be written; the error names it.
        ArtifactError: A nested graph has no source.
    """
    _refuse_graphs_that_are_read(module)
    sources = {id(module.get_submodule(path)): text for path, text in source.children.items()}
    graphs = {}
    for path, graph in state.graphs.items():
        if id(graph) not in sources:
            raise ArtifactError(f"the server sent no source for the nested graph {path!r}")
        graphs[path] = sources[id(graph)]
    parts = [_HEAD.format(version=torch.__version__, name=name if name.isidentifier() else "model")]
    parts.extend(f"import {name}  # registers operators\n" for name in _registering(module))
    parts.extend(_function(i, each) for i, each in enumerate([source, *graphs.values()]))
    parts.extend(
        f"\n\nclass _Graph{i}(torch.nn.Module):\n    forward = _forward_{i}()\n"
        for i in range(1, 1 + len(graphs))
    )
    parts.extend(_tables(state, list(graphs), constants))
    parts.append(_BINDING)
    info = pytree_info_of(module.graph._codegen)
    if info is not None:
        parts.append(f"    _in_spec = {spec(info.in_spec)}\n")
        if info.out_spec is not None:
            parts.append(f"    _out_spec = {spec(info.out_spec, result=True)}\n")
    parts.append(_INIT)
    return "".join(parts)


def _refuse_graphs_that_are_read(module: GraphModule) -> None:
    for part in module.modules():
        for node in part.graph.nodes if isinstance(part, GraphModule) else ():
            target = node.target
            if not isinstance(target, torch._ops.HigherOrderOperator) or str(target) in _CALLING:
                continue
            for given in node.all_input_nodes:
                if given.op == "get_attr" and isinstance(_attribute(part, given), GraphModule):
                    raise UnsupportedGraphError(
                        f"{target} reads the graph of its argument, which a Python file does not "
                        f"contain",
                        node=node.name,
                        remedy=REMEDY,
                    )


def _attribute(module: torch.nn.Module, node: Node) -> object:
    value: object = module
    for name in str(node.target).split("."):
        value = getattr(value, name)
    return value


def _registering(module: GraphModule) -> list[str]:
    """Modules that must be imported to register the operators of a graph."""
    targets = (
        node.target
        for part in module.modules()
        if isinstance(part, GraphModule)
        for node in part.graph.nodes
    )
    operators = {operator for t in targets if (operator := operator_of(t)) is not None}
    return sorted({name for operator in operators if (name := registering_module(operator))})


def _function(number: int, source: GeneratedSource) -> str:
    """A function that returns `forward`; its imports are local to it."""
    imports = _WRAPPED.sub("", source.import_block).strip()
    code = source.code.strip()
    if '"""' in code or "'''" in code or "\\\n" in code:
        code = ast.unparse(ast.parse(code))  # indenting would change such strings
    body = "\n".join(filter(None, (imports, code, "return forward")))
    return f"\ndef _forward_{number}():\n{textwrap.indent(body, '    ')}\n\n"


def _tables(state: State, graphs: list[str], constants: str) -> Iterator[str]:
    yield "\n\n# By path in the compiled module.\n"
    yield _table("_GRAPHS", {path: f"_Graph{i}" for i, path in enumerate(graphs, 1)})
    yield _table(
        "_LEAVES",
        {
            path: f"(lambda: {constructor(leaf, path)}, {leaf.training})"
            for path, leaf in state.leaves.items()
        },
    )
    yield _table("_LITERALS", {p: literal(v, p) for p, v in state.literals.items()})
    yield "# What it is registered as, whether it takes gradients, its name in the state.\n"
    yield _table(
        "_TENSORS",
        {
            path: repr((tensor.role, tensor.requires_grad, tensor.source))
            for path, tensor in state.tensors.items()
        },
    )
    yield "\n\ndef _constants():\n"
    if not constants:
        yield "    return {}\n"
        return
    yield "    # Tensors that are in no state_dict: constants, and what passes made.\n"
    yield f"    path = pathlib.Path(__file__).with_name({constants!r})\n"
    yield '    return torch.load(path, map_location="cpu", weights_only=True)\n'


def _table(name: str, rows: Mapping[str, str]) -> str:
    lines = "".join(f"    {path!r}: {text},\n" for path, text in rows.items())
    return f"{name} = {{\n{lines}}}\n" if lines else f"{name} = {{}}\n"
