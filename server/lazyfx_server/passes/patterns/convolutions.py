"""Finds convolutions and batch normalizations in a graph, in any form."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from lazyfx.shared.wire.calling_convention import has_hooks
from lazyfx_server.passes.analysis.called_operators import operator_name
from lazyfx_server.passes.analysis.effects import argument

# Leaf classes -> the equivalent function.
_MODULES: Mapping[type[nn.Module], Callable[..., Any]] = {
    nn.Conv1d: torch.conv1d,
    nn.Conv2d: torch.conv2d,
    nn.Conv3d: torch.conv3d,
    nn.ConvTranspose1d: torch.conv_transpose1d,
    nn.ConvTranspose2d: torch.conv_transpose2d,
    nn.ConvTranspose3d: torch.conv_transpose3d,
}
_NORMALIZATION_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

# Operators -> index of `groups`.
_PLAIN = {"conv1d": 6, "conv2d": 6, "conv3d": 6}
_TRANSPOSED = {"conv_transpose1d": 6, "conv_transpose2d": 6, "conv_transpose3d": 6}


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution whose weights are attributes.

    Attributes:
        node: The call.
        weight: Path of the weight.
        bias: Path of the bias, or None.
        transposed: Whether it is a transposed convolution.
        groups: The number of groups.
        module: The module called, or None for a function.
    """

    node: Node
    weight: str
    bias: str | None
    transposed: bool
    groups: int
    module: nn.Module | None = None

    def paths(self) -> list[str]:
        """Paths of its tensors."""
        return [path for path in (self.weight, self.bias) if path is not None]

    def with_weights(self, weight: Node, bias: Node) -> Node:
        """Replaces the weights of the call; returns the node, a new one for a module call."""
        if self.module is not None:
            return self._functional(self.module, weight, bias)
        args, kwargs = list(self.node.args), dict(self.node.kwargs)
        for index, name, value in ((1, "weight", weight), (2, "bias", bias)):
            if index < len(args):
                args[index] = value
            else:
                kwargs[name] = value
        self.node.args, self.node.kwargs = tuple(args), kwargs
        return self.node

    def _functional(self, module: Any, weight: Node, bias: Node) -> Node:
        operand = argument(self.node, 0, "input")
        if isinstance(module, nn.Linear):
            with self.node.graph.inserting_before(self.node):
                return self.node.graph.call_function(
                    torch.nn.functional.linear, (operand, weight, bias)
                )
        kwargs = {
            "stride": module.stride,
            "padding": module.padding,
            "dilation": module.dilation,
            "groups": module.groups,
        }
        if self.transposed:
            kwargs["output_padding"] = module.output_padding
        with self.node.graph.inserting_before(self.node):
            return self.node.graph.call_function(
                _MODULES[type(module)], (operand, weight, bias), kwargs
            )


@dataclass(frozen=True, slots=True)
class Normalization:
    """A batch normalization in evaluation mode whose statistics are attributes.

    Attributes:
        node: The call.
        input: The value it normalizes.
        mean: Path of the running mean.
        variance: Path of the running variance.
        weight: Path of the weight, or None.
        bias: Path of the bias, or None.
        epsilon: Added to the variance.
        gives_statistics: It returns a tuple, of which only the first item is used.
    """

    node: Node
    input: Node
    mean: str
    variance: str
    weight: str | None
    bias: str | None
    epsilon: float
    gives_statistics: bool = False

    def paths(self) -> list[str]:
        """Paths of its tensors."""
        found = (self.mean, self.variance, self.weight, self.bias)
        return [path for path in found if path is not None]


def convolution_of(node: Node, owner: GraphModule) -> Convolution | None:
    """The convolution that a node calls, if its weights can be replaced."""
    if node.op == "call_module":
        return _convolution_module(node, owner)
    name = _name(node)
    if name == "convolution":
        transposed, groups = argument(node, 6, "transposed"), argument(node, 8, "groups")
    elif name in _PLAIN or name in _TRANSPOSED:
        transposed = name in _TRANSPOSED
        groups = argument(node, (_TRANSPOSED if transposed else _PLAIN)[name], "groups", 1)
    else:
        return None
    weight = _path(argument(node, 1, "weight"))
    bias = argument(node, 2, "bias")
    if weight is None or not isinstance(transposed, bool) or not isinstance(groups, int):
        return None
    if bias is not None and _path(bias) is None:
        return None
    return Convolution(node, weight, _path(bias), transposed, groups)


def linear_of(node: Node, owner: GraphModule) -> Convolution | None:
    """The linear layer that a node calls, if its weights can be replaced."""
    if node.op == "call_module":
        called: Any = owner.get_submodule(str(node.target))
        one_operand = len(node.args) + len(node.kwargs) == 1
        if type(called) is not nn.Linear or not one_operand or has_hooks(called):
            return None
        bias = None if called.bias is None else f"{node.target}.bias"
        return Convolution(node, f"{node.target}.weight", bias, False, 1, called)
    if _name(node) != "linear":
        return None
    weight, given = _path(argument(node, 1, "weight")), argument(node, 2, "bias")
    if weight is None or (given is not None and _path(given) is None):
        return None
    return Convolution(node, weight, _path(given), False, 1)


def normalization_of(node: Node, owner: GraphModule) -> Normalization | None:
    """The batch normalization in evaluation mode that a node calls, if its statistics are known."""
    if node.op == "call_module":
        return _normalization_module(node, owner)
    name = _name(node)
    functional = node.target is torch.nn.functional.batch_norm
    if name not in {"batch_norm", "native_batch_norm", "_native_batch_norm_legit_no_training"}:
        return None
    gives_statistics = name != "batch_norm"
    if name == "_native_batch_norm_legit_no_training":
        training, epsilon = False, argument(node, 6, "eps")
    else:
        training = argument(node, 5, "training", False if functional else None)
        epsilon = argument(node, 7, "eps", 1e-5)
    order = ("running_mean", "running_var", "weight", "bias")
    if not functional:
        order = ("weight", "bias", "running_mean", "running_var")
    given = {word: argument(node, place + 1, word) for place, word in enumerate(order)}
    paths = {word: _path(value) for word, value in given.items()}
    operand = argument(node, 0, "input", node.kwargs.get("self"))
    mean, variance = paths["running_mean"], paths["running_var"]
    if (
        training is not False
        or not isinstance(epsilon, float | int)
        or not isinstance(operand, Node)
        or mean is None
        or variance is None
        or any(given[word] is not None and paths[word] is None for word in ("weight", "bias"))
        or (gives_statistics and not _only_first_is_used(node))
    ):
        return None
    return Normalization(
        node,
        operand,
        mean,
        variance,
        paths["weight"],
        paths["bias"],
        float(epsilon),
        gives_statistics,
    )


def has_lifted_statistics(node: Node) -> bool:
    """Whether a node is a batch normalization in evaluation mode whose statistics are inputs."""
    functional = node.target is torch.nn.functional.batch_norm
    if _name(node) not in {"batch_norm", "native_batch_norm"}:
        return False
    training = argument(node, 5, "training", False if functional else None)
    mean = argument(node, 1 if functional else 3, "running_mean")
    return training is False and isinstance(mean, Node) and mean.op == "placeholder"


def _convolution_module(node: Node, owner: GraphModule) -> Convolution | None:
    called: Any = owner.get_submodule(str(node.target))
    one_operand = len(node.args) + len(node.kwargs) == 1
    if type(called) not in _MODULES or not one_operand or has_hooks(called):
        return None
    if called.padding_mode != "zeros":
        return None
    path = str(node.target)
    return Convolution(
        node,
        f"{path}.weight",
        None if called.bias is None else f"{path}.bias",
        called.transposed,
        called.groups,
        called,
    )


def _normalization_module(node: Node, owner: GraphModule) -> Normalization | None:
    called: Any = owner.get_submodule(str(node.target))
    operand = argument(node, 0, "input")
    if type(called) not in _NORMALIZATION_MODULES or has_hooks(called) or called.training:
        return None
    if called.running_mean is None or called.running_var is None or not isinstance(operand, Node):
        return None
    path = str(node.target)
    return Normalization(
        node,
        operand,
        f"{path}.running_mean",
        f"{path}.running_var",
        None if called.weight is None else f"{path}.weight",
        None if called.bias is None else f"{path}.bias",
        called.eps,
    )


def _name(node: Node) -> str:
    """The operator's name in any form, or "" if the node calls no function."""
    return operator_name(node) if node.op == "call_function" else ""


def _path(value: object) -> str | None:
    return str(value.target) if isinstance(value, Node) and value.op == "get_attr" else None


def _only_first_is_used(node: Node) -> bool:
    return all(u.target is operator.getitem and u.args[1] == 0 for u in node.users)
