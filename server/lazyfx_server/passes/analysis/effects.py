"""Side effects of a node, and the operands whose storage its result may share.

Conservative: an unknown callable is assumed to write to all its operands, to draw random numbers
and to change the state in which other nodes run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch._ops import HigherOrderOperator, OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from lazyfx.shared.wire.targets.operator_schemas import operator_of
from lazyfx_server.passes.analysis import operator_facts as known
from lazyfx_server.passes.analysis.module_effects import module_effects
from lazyfx_server.passes.analysis.overloads import overload_facts
from lazyfx_server.passes.analysis.walk import attribute_at


@dataclass(frozen=True, slots=True)
class Effects:
    """The effects of one node.

    Attributes:
        keep: Removing the node would change what the graph does.
        random: It draws random numbers.
        state: It changes the state in which later nodes run (autocast, grad mode, vmap).
        mergeable: Two such nodes with equal operands compute equal results.
        writes: Operands whose storage it writes.
        aliases: Operands whose storage the result may share.
    """

    keep: bool = False
    random: bool = False
    state: bool = False
    mergeable: bool = True
    writes: tuple[Node, ...] = ()
    aliases: tuple[Node, ...] = ()

    @property
    def pure(self) -> bool:
        """Whether it is deterministic and has no side effects."""
        return not (self.keep or self.random or self.state or self.writes)


_FRESH = Effects()
_KEPT = Effects(keep=True, mergeable=False)

# Higher-order operators whose effects are those of their bodies.
_STRUCTURED = known.words(
    "cond while_loop scan associative_scan map map_impl wrap tag_activation_checkpoint "
    "wrap_with_autocast wrap_with_set_grad_enabled autograd_function_apply flex_attention "
    "invoke_subgraph wrap_activation_checkpoint hints_wrapper"
)

_TENSOR_PROPERTIES = known.words(
    "size dim ndimension numel nelement element_size stride storage_offset get_device "
    "is_contiguous is_floating_point is_complex item tolist type_as __len__ get keys items "
    "float double half bfloat16 int long short char byte bool cfloat cpu cuda type"
)

# Methods with names of operators that act on autograd or on streams.
_EFFECTFUL_METHODS = known.words("backward register_hook retain_grad record_stream share_memory_")


def effects_of(node: Node) -> Effects:
    """The effects of a node; its graph must be owned by its GraphModule."""
    if node.op == "get_attr":
        return _FRESH
    if node.op == "call_function":
        return _function(node)
    if node.op == "call_method":
        return _method(node)
    if node.op == "call_module":
        return _module(node)
    return _KEPT


def has_effects(module: GraphModule) -> bool:
    """Whether running a module has side effects."""
    return any(
        not effects_of(node).pure
        for node in module.graph.nodes
        if node.op not in {"placeholder", "output"}
    )


def writes_inputs(module: GraphModule) -> bool:
    """Whether running a module may write to one of its inputs."""
    reached: set[Node] = set()
    for node in module.graph.nodes:
        if node.op == "placeholder":
            reached.add(node)
        elif node.op.startswith("call_"):
            effects = effects_of(node)
            if not reached.isdisjoint(effects.writes):
                return True
            if not reached.isdisjoint(effects.aliases):
                reached.add(node)
    return False


def argument(node: Node, index: int, name: str, default: Any = None) -> Any:
    """A node's argument, whether it was passed positionally or by keyword."""
    if index < len(node.args):
        return node.args[index]
    return node.kwargs.get(name, default)


def draws_random(node: Node, name: str, *, functional: bool = False) -> bool:
    """Whether the node's arguments enable the randomness of operator `name`."""
    switches = known.FUNCTIONAL_RANDOM_SWITCHES if functional else known.RANDOM_SWITCHES
    return not any(
        _is_literal(argument(node, index, keyword, default), off)
        for index, keyword, default, off in switches.get(name, ())
    )


def _is_literal(value: Any, literal: Any) -> bool:
    return isinstance(value, bool | int | float) and value == literal


def _unknown(node: Node) -> Effects:
    operands = tuple(node.all_input_nodes)
    return Effects(True, True, True, False, operands, operands)


def _function(node: Node) -> Effects:
    target: Any = node.target
    if isinstance(target, OpOverload):
        return _overload(node, target)
    if isinstance(target, HigherOrderOperator):
        return _higher_order(node, target)
    if isinstance(target, OpOverloadPacket):
        found = operator_of(target)
        aten = found is not None and found.namespace == "aten"
        return _named(node, target.__name__, functional=False) if aten else _unknown(node)
    if target in known.IN_PLACE_OPERATORS:
        return _in_place(node)
    if target in known.PURE_PYTHON:
        return _python(node, target)
    entry = known.torch_functions().get(target) if _hashable(target) else None
    return _named(node, entry[0], functional=entry[1]) if entry else _unknown(node)


def _method(node: Node) -> Effects:
    name = str(node.target)
    if name in known.IN_PLACE_DUNDERS:
        return _in_place(node)
    if name in known.PURE_DUNDERS:
        return Effects(aliases=_operands(node) if name == "__getitem__" else ())
    if name in _EFFECTFUL_METHODS:
        return _unknown(node)
    if name in _TENSOR_PROPERTIES:
        return Effects(aliases=_operands(node))
    return _named(node, name, functional=False)


def _python(node: Node, target: Callable[..., Any]) -> Effects:
    if target not in known.PYTHON_MAY_RETURN_OPERAND:
        return _FRESH
    if target in known.PYTHON_CONTAINER_ONLY and all(
        isinstance(value, Node | int | float) for value in node.args
    ):
        return _FRESH
    return Effects(aliases=_operands(node))


def _in_place(node: Node) -> Effects:
    written = tuple(_nodes(node.args[:1]))
    return Effects(keep=True, mergeable=False, writes=written, aliases=written)


def _named(node: Node, name: str, *, functional: bool) -> Effects:
    """A torch function, a packet or a method, by the name of its operator."""
    base = name.removesuffix("_") if not name.endswith("__") else name
    facts = known.aten_facts(base)
    in_place_facts = known.aten_facts(name)
    if not (facts.exists or in_place_facts.exists or functional):
        return _unknown(node)
    if any(word in name for word in known.ASSERTING):
        return _KEPT
    writes = list(_nodes([node.kwargs.get("out")]))
    if base != name or _is_literal(node.kwargs.get("inplace"), True) or _inplace_flag(node, name):
        writes += _nodes(node.args[:1] or [node.kwargs.get("input", node.kwargs.get("self"))])
    elif facts.mutates:
        return _unknown(node)
    # Only these are returned, not statistics and weights that are written besides.
    returned = bool(writes)
    writes += _statistics(node, name, functional=functional)
    bag = functional and name == "embedding_bag"
    if (bag or (functional and name == "embedding")) and argument(node, 3, "max_norm") is not None:
        # An embedding_bag takes its first two operands in either order.
        writes += _nodes([argument(node, 1, "weight"), *([argument(node, 0, "input")] * bag)])
    random = (facts.random or (functional and name in known.FUNCTIONAL_RANDOM_SWITCHES)) and (
        draws_random(node, name, functional=functional)
    )
    may_alias = returned or facts.may_alias or name in known.MAY_RETURN_OPERAND
    return Effects(
        keep=bool(writes) or random,
        random=random,
        mergeable=not (writes or random or base in known.UNINITIALIZED),
        writes=tuple(writes),
        aliases=_operands(node) if may_alias else (),
    )


def _inplace_flag(node: Node, name: str) -> bool:
    index = known.INPLACE_INDEX.get(name)
    return (
        index is not None
        and node.op == "call_function"
        and not isinstance(node.target, OpOverload | OpOverloadPacket)
        and index < len(node.args)
        and node.args[index] is True
    )


def _statistics(node: Node, name: str, *, functional: bool) -> list[Node]:
    """Running statistics that a normalization updates although its schema does not say so."""
    if functional and name in known.FUNCTIONAL_NORMALIZATIONS:
        index, keyword, default = known.FUNCTIONAL_NORMALIZATIONS[name]
        places = ((1, "running_mean"), (2, "running_var"))
    elif name in known.NORMALIZATIONS:
        index, keyword, (mean, variance) = known.NORMALIZATIONS[name]
        default = True
        places = ((mean, "running_mean"), (variance, "running_var"))
    else:
        return []
    if _is_literal(argument(node, index, keyword, default), False):
        return []
    return _nodes(argument(node, place, word) for place, word in places)


def _overload(node: Node, op: OpOverload[..., Any]) -> Effects:
    facts = overload_facts(op)
    writes: list[Node] = []
    shared: list[Node] = []
    for index, name in facts.written:
        writes += _nodes([argument(node, index, name)])
    for index, name in facts.shared:
        shared += _nodes([argument(node, index, name)])
    writes += _statistics(node, facts.name, functional=False)
    random = facts.random and draws_random(node, facts.name)
    kept = bool(writes) or facts.effectful or random
    return Effects(
        keep=kept,
        random=random,
        mergeable=facts.repeatable and not kept,
        writes=tuple(writes),
        aliases=_operands(node) if facts.hidden_alias else tuple(shared),
    )


def _higher_order(node: Node, op: HigherOrderOperator) -> Effects:
    operands = _operands(node)
    owner = node.graph.owning_module
    read = [n for n in operands if n.op == "get_attr"] if owner is not None else []
    bodies = [
        b for b in (attribute_at(owner, str(n.target)) for n in read) if isinstance(b, GraphModule)
    ]
    name = str(op.name())
    if name not in _STRUCTURED or not bodies or any(has_effects(body) for body in bodies):
        return _unknown(node)
    return Effects(mergeable=False, aliases=operands)


def _module(node: Node) -> Effects:
    owner = node.graph.owning_module
    module = owner.get_submodule(str(node.target)) if owner is not None else None
    if module is None:
        return _unknown(node)
    facts = module_effects(module, has_effects)
    if facts is None:
        return _unknown(node)
    writes = _nodes(node.args[:1]) if facts.writes_input else []
    if any(isinstance(part, GraphModule) and writes_inputs(part) for part in module.modules()):
        writes = list(_operands(node))
    return Effects(
        keep=bool(writes) or facts.keep or facts.random,
        random=facts.random,
        mergeable=not (writes or facts.keep or facts.random),
        writes=tuple(writes),
        aliases=_operands(node) if facts.may_return_input or writes else (),
    )


def _operands(node: Node) -> tuple[Node, ...]:
    return tuple(node.all_input_nodes)


def _nodes(values: Iterable[Any]) -> list[Node]:
    found: list[Node] = []
    for value in values:
        torch.fx.node.map_arg(value, found.append)
    return found


def _hashable(value: object) -> bool:
    return type(value).__hash__ is not None
