"""Side effects of calling a leaf module."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.modules.instancenorm import _InstanceNorm

from lazyfx.shared.wire.calling_convention import has_hooks


@dataclass(frozen=True, slots=True)
class ModuleEffects:
    """The effects of calling a module."""

    keep: bool = False
    random: bool = False
    writes_input: bool = False
    may_return_input: bool = False


_MAY_RETURN_INPUT = (
    nn.Identity,
    nn.Flatten,
    nn.Unflatten,
    _DropoutNd,
    nn.Sequential,
    GraphModule,
    nn.MultiheadAttention,
)


def module_effects(
    module: nn.Module, graph_has_effects: Callable[[GraphModule], bool]
) -> ModuleEffects | None:
    """The effects of a module and its submodules; None if it is not one of torch's own.

    Args:
        module: The module that a call_module node calls.
        graph_has_effects: Returns whether a nested GraphModule has effects.
    """
    keep = random = writes_input = may_return_input = False
    nested = {
        id(part) for g in module.modules() if isinstance(g, GraphModule) for part in g.modules()
    }
    for part in module.modules():
        if isinstance(part, GraphModule):
            keep |= graph_has_effects(part)
            may_return_input = True
            continue
        if id(part) in nested and type(part) is nn.Module:
            continue  # a bare container on the path to an attribute
        if type(part) is nn.Module or not type(part).__module__.startswith("torch.nn.modules."):
            return None
        keep |= _keeps_state(part)
        random |= _is_random(part)
        writes_input |= bool(getattr(part, "inplace", False))
        may_return_input |= isinstance(part, _MAY_RETURN_INPUT)
    return ModuleEffects(keep, random, writes_input, may_return_input)


def written_parts(
    module: nn.Module, graph_has_effects: Callable[[GraphModule], bool]
) -> list[nn.Module]:
    """The submodules whose tensors a call of the module may write; all of an unknown module.

    Args:
        module: The module that a call_module node calls.
        graph_has_effects: Returns whether a nested GraphModule has effects.
    """
    if module_effects(module, graph_has_effects) is None:
        return [module]
    return [
        part
        for part in module.modules()
        if (graph_has_effects(part) if isinstance(part, GraphModule) else _keeps_state(part))
    ]


def _keeps_state(module: nn.Module) -> bool:
    if has_hooks(module):
        return True
    if isinstance(module, _InstanceNorm | _NormBase):
        return module.training and bool(module.track_running_stats)
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return module.max_norm is not None
    return False


def _is_random(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return module.training and module.p != 0
    if isinstance(module, nn.RReLU):
        return module.training
    if isinstance(module, nn.RNNBase | nn.MultiheadAttention):
        return module.training and module.dropout != 0
    return isinstance(module, nn.FractionalMaxPool2d | nn.FractionalMaxPool3d)
