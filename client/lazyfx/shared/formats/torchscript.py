"""Converts a graph to TorchScript, for `torch.jit.load`.

torch.jit.script cannot take a lazy module, calling conventions of torch.export, or
operator overloads by name; it resolves overloads by its own types. So the graph is copied to an
eager module without these.
"""

from __future__ import annotations

import io
import operator
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.fx.graph import _PyTreeCodeGen
from torch.fx.node import Argument
from torch.nn.utils import parametrize
from torch.utils._pytree import TreeSpec

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared import wire
from lazyfx.shared.formats.late_operators import refuse_late_operators
from lazyfx.shared.formats.lost_writes import keep_write

# Operators that write to a tensor in Python, but in TorchScript return a new one or do not exist.
_WRITTEN_AS: Final[dict[object, str]] = {
    operator.iand: "bitwise_and_",
    operator.ifloordiv: "floor_divide_",
    operator.ior: "bitwise_or_",
    operator.ipow: "pow_",
    operator.ixor: "bitwise_xor_",
}
# Operators that take a dtype or sizes at one place.
DTYPE_OR_SIZE: Final = ("view", "view_copy")


def script_module(eager: GraphModule) -> bytes:
    """Scripts a graph.

    Args:
        eager: From `eager_copy`. Its parameters are written unchanged. Nested GraphModules must be
            called as modules, not passed to higher-order operators.

    Returns:
        An archive; `torch.jit.load` returns a module that takes the graph's inputs positionally.

    Raises:
        UnsupportedGraphError: The graph cannot be expressed in TorchScript; names the node.
    """
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch deprecates its own function
            torch.jit.save(torch.jit.script(eager), buffer)
    except Exception as error:  # torch.jit raises errors of every kind
        raise UnsupportedGraphError(
            f"TorchScript cannot express the graph: {_reason(error)}",
            node=_node_at_fault(eager, str(error)),
            remedy="request code, a pickle or the graph instead",
        ) from error
    return buffer.getvalue()


Generation = Callable[[Graph], AbstractContextManager[None]]


def eager_copy(module: GraphModule, generation: Generation | None = None) -> GraphModule:
    """An eager copy: plain calling convention, no annotations, operators without overloads.

    Code is generated and compiled once for it and once for each nested GraphModule.

    Args:
        module: The module to copy.
        generation: A context around the code generation of each graph; a server checks the code
            there.

    Raises:
        UnsupportedGraphError: The model's return value has no TorchScript type.
    """
    refuse_late_operators(module)
    for path, child in module.named_modules():
        # torch.jit.script would compute it while it reads the module; a spectral norm writes then.
        if parametrize.is_parametrized(child):
            raise UnsupportedGraphError(
                f"TorchScript cannot express {path}, a module with parametrizations",
                remedy="use save_exported_program",
            )
    graph = Graph()
    result = graph.graph_copy(module.graph, {})
    graph.output(_structured(module.graph, result))
    described = FakeTensorMode(shape_env=ShapeEnv())
    for node in graph.nodes:
        # TorchScript takes untyped inputs for tensors, and then does not accept numbers.
        node.type = _number(node, described) if node.op == "placeholder" else None
        keep_write(module, node)
        _refuse_dtype_for_size(node)
        if isinstance(node.target, OpOverload):
            node.target = node.target.overloadpacket
        elif node.target in _WRITTEN_AS:
            node.op, node.target = "call_method", _WRITTEN_AS[node.target]
    with nullcontext() if generation is None else generation(graph):
        eager = GraphModule(module, graph, class_name=type(module).__name__)
    for path, child in list(eager.named_children()):
        if isinstance(child, GraphModule):
            setattr(eager, path, eager_copy(child, generation))
    return eager


def _refuse_dtype_for_size(node: Node) -> None:
    """Refuse `x.view(torch.int8)`, which TorchScript takes for `x.view(1)`: dtypes are integers."""
    if not node.op.startswith("call_"):
        return
    target = node.target.overloadpacket if isinstance(node.target, OpOverload) else node.target
    name = target if isinstance(target, str) else getattr(target, "__name__", "")
    given = (*node.args, *node.kwargs.values())
    if name in DTYPE_OR_SIZE and any(isinstance(v, torch.dtype) for v in given):
        raise UnsupportedGraphError(
            "TorchScript cannot view a tensor as another dtype",
            node=node.name,
            remedy="use save_pickle or save_exported_program",
        )


def _number(node: Node, mode: FakeTensorMode) -> type | None:
    """The type of a numeric input."""
    value = wire.materialize(node, mode)
    for kind, symbolic in ((bool, torch.SymBool), (int, torch.SymInt), (float, torch.SymFloat)):
        if isinstance(value, (kind, symbolic)):
            return kind
    return None


def _structured(graph: Graph, outputs: Argument) -> Argument:
    """Assemble the model's return value from the flat outputs of a graph of torch.export."""
    codegen = graph._codegen  # noqa: SLF001 - torch has no public reader
    spec = codegen.pytree_info.out_spec if isinstance(codegen, _PyTreeCodeGen) else None
    if spec is None:
        return outputs
    flat = list(outputs) if isinstance(outputs, (list, tuple)) else [outputs]
    return _built(spec, iter(flat))


def _built(spec: TreeSpec, leaves: Iterator[Argument]) -> Argument:
    if spec.is_leaf():
        return next(leaves)
    # Each consumes its part of the leaves, in this order.
    parts = [_built(child, leaves) for child in spec.children()]
    kind: Any = spec.type
    if kind is list:
        return parts
    if isinstance(kind, type) and issubclass(kind, tuple):
        return tuple(parts)
    if isinstance(kind, type) and issubclass(kind, Mapping):
        keys = _keys(spec)
        if keys and all(isinstance(key, str) for key in keys):
            return dict(zip(keys, parts, strict=True))
    name = getattr(kind, "__name__", str(kind))
    raise UnsupportedGraphError(
        f"TorchScript has no type for what the model returns ({name})",
        remedy="use save_pickle or save_exported_program; or return tensors, tuples, lists or "
        "dicts with string keys",
    )


def _keys(spec: TreeSpec) -> Sequence[Any]:
    """The keys of a dict, or of a dict-like class (transformers.ModelOutput)."""
    keys = spec.context[1] if spec.type is defaultdict else spec.context
    return keys if isinstance(keys, (list, tuple)) and len(keys) == len(spec.children()) else ()


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(":") if lines else type(error).__name__


def _node_at_fault(module: GraphModule, message: str) -> str | None:
    """The node whose source line is in TorchScript's error, if any."""
    lines = message.splitlines()
    marked = next((i for i, line in enumerate(lines) if "<--- HERE" in line), 0)
    name = lines[marked - 1].strip().partition(" = ")[0].partition(":")[0] if marked else ""
    nodes: dict[str, Node] = {node.name: node for node in module.graph.nodes}
    return name if name in nodes else None
