"""Writes that TorchScript would lose or move, because it does not see them.

TorchScript removes calls whose results are unused and moves others, by what their schemas say. The
schemas of normalizations say that they write to nothing; they write to their running statistics.
"""

# ruff: noqa: SLF001 - torch has no public reader of schemas

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.instancenorm import _InstanceNorm

from lazyfx.errors import UnsupportedGraphError
from lazyfx.shared.wire.values.tensors import stand_in_of, storage_key

_REMEDY: Final = "use save_pickle or save_exported_program"

# Names of normalizations: places of the running mean and variance and of the switch that makes
# them written, with its name and default.
_STATISTICS: Final[dict[str, tuple[int, int, int, str, bool]]] = {
    "batch_norm": (3, 4, 5, "training", True),
    "native_batch_norm": (3, 4, 5, "training", True),
    "cudnn_batch_norm": (3, 4, 5, "training", True),
    "miopen_batch_norm": (3, 4, 5, "training", True),
    "instance_norm": (3, 4, 5, "use_input_stats", True),
}
_FUNCTIONS: Final[dict[object, tuple[int, int, int, str, bool]]] = {
    functional.batch_norm: (1, 2, 5, "training", False),
    functional.instance_norm: (1, 2, 5, "use_input_stats", True),
}


def keep_write(module: GraphModule, node: Node) -> None:
    """Makes TorchScript see what a call writes.

    Args:
        module: Holds the attributes of the node's graph.
        node: May get another operator, which computes the same.

    Raises:
        UnsupportedGraphError: TorchScript would lose or move the write.
    """
    _refuse_unseen(module, node)
    written = list(_statistics(module, node))
    if not written:
        return
    if node.target is torch.ops.aten.native_batch_norm.default and len(written) == 2:
        # The same, with a schema that says what it writes.
        node.target = torch.ops.aten._native_batch_norm_legit.default
        return
    problem = ""
    if not node.users:
        problem = "TorchScript drops a normalization whose result is unused, with what it writes"
    elif any(_is_used_elsewhere(module, node, tensor) for tensor in written):
        problem = (
            "the graph reads running statistics, and TorchScript may do so before their update"
        )
    if problem:
        raise UnsupportedGraphError(problem, node=node.name, remedy=_REMEDY)


def _statistics(module: GraphModule, node: Node) -> Iterator[Node | torch.Tensor]:
    """The running statistics that a normalization writes: nodes, or tensors of a called module."""
    if node.op == "call_module":
        called = module.get_submodule(str(node.target))
        norms = (p for p in called.modules() if isinstance(p, (_NormBase, _InstanceNorm)))
        for norm in norms:
            if norm.training and norm.track_running_stats:
                yield from norm.buffers(recurse=False)
        return
    found = _places(node)
    if found is None:
        return
    mean, variance, switch, name, default = found
    if _argument(node, switch, name, default) in (False, 0):
        return
    for place, word in ((mean, "running_mean"), (variance, "running_var")):
        value = _argument(node, place, word, None)
        if isinstance(value, Node):
            yield value


def _places(node: Node) -> tuple[int, int, int, str, bool] | None:
    target: Any = node.target
    if node.op != "call_function":
        return None
    if isinstance(target, OpOverload):
        if target.namespace != "aten" or target._schema.is_mutable:
            return None
        return _STATISTICS.get(target._schema.name.partition("::")[2])
    if target in _FUNCTIONS:
        return _FUNCTIONS[target]
    name = getattr(target, "__name__", "")
    return _STATISTICS.get(name) if getattr(torch, name, None) is target else None


def _argument(node: Node, place: int, name: str, default: Any) -> Any:
    return node.args[place] if place < len(node.args) else node.kwargs.get(name, default)


def _is_used_elsewhere(module: GraphModule, node: Node, written: Node | torch.Tensor) -> bool:
    """Whether another node reads or writes what a normalization writes."""
    if isinstance(written, Node):
        if any(user is not node for user in written.users):
            return True
        value = _attribute(module, written)
    else:
        value = written
    if value is None:
        return False
    memory = _memory(value)
    for other in node.graph.nodes:
        if other.op == "get_attr" and other is not written and other.users:
            tensor = _attribute(module, other)
            if tensor is not None and _memory(tensor) == memory:
                return True
    return False


def _attribute(module: GraphModule, node: Node) -> torch.Tensor | None:
    value: object = module
    for part in str(node.target).split(".") if node.op == "get_attr" else ():
        value = getattr(value, part, None)
    return value if isinstance(value, torch.Tensor) else None


def _memory(tensor: torch.Tensor) -> tuple[str, int]:
    stand_in = stand_in_of(tensor)
    if stand_in is not None:
        return "sent", stand_in.attribute.storage
    return "own", storage_key(tensor)


def _refuse_unseen(module: GraphModule, node: Node) -> None:
    """Refuse calls that TorchScript removes: it does not see what they write to.

    These are max_norm, which renormalizes the rows of an embedding, and writes to lists of tensors.
    """
    if isinstance(node.target, (OpOverload, OpOverloadPacket)) or node.op == "call_function":
        for schema in _schemas(node.target):
            if any(_is_written_list(argument) for argument in schema.arguments):
                raise UnsupportedGraphError(
                    "TorchScript drops writes to a list of tensors",
                    node=node.name,
                    remedy=_REMEDY,
                )
    if node.op == "call_module":
        limit = getattr(module.get_submodule(str(node.target)), "max_norm", None)
    elif node.target in (functional.embedding, functional.embedding_bag):
        limit = node.args[3] if len(node.args) > 3 else node.kwargs.get("max_norm")
    else:
        return
    if limit is not None:
        raise UnsupportedGraphError(
            "TorchScript drops the effect of max_norm on the rows of an embedding",
            node=node.name,
            remedy=_REMEDY,
        )


def _schemas(target: Any) -> list[Any]:
    """The schemas of an operator, or of a function of torch of the same name."""
    if isinstance(target, OpOverload):
        return [target._schema]
    if not isinstance(target, OpOverloadPacket):
        name = getattr(target, "__name__", "")
        if getattr(torch, name, None) is not target:
            return []
        target = getattr(torch.ops.aten, name, None)
    overloads = [] if target is None else target.overloads()
    return [getattr(target, name)._schema for name in overloads]


def _is_written_list(argument: Any) -> bool:
    written = argument.alias_info is not None and argument.alias_info.is_write
    return written and "List" in str(argument.type) and argument.name != "out"
