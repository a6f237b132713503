"""The tensors of a graph by dotted path; the paths are the same on client and server."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.fx import GraphModule


def own_tensors(module: GraphModule) -> dict[str, torch.Tensor]:
    """Every parameter, buffer and plain tensor attribute of a decoded graph, by path."""
    found: dict[str, torch.Tensor] = {}
    for path, part in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, value in [*part._parameters.items(), *part._buffers.items(), *vars(part).items()]:  # noqa: SLF001 - plain attributes count too
            if isinstance(value, torch.Tensor):
                found[prefix + name] = value
    return found


def replace_tensors(
    module: GraphModule, replacement: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    """Replace each tensor, registering those that are not parameters as buffers.

    Tracing finds parameters and buffers by path, but does not keep plain attributes.

    Args:
        module: A decoded graph.
        replacement: Called once per tensor, so that tied ones stay tied.
    """
    done: dict[int, torch.Tensor] = {}
    for path, tensor in own_tensors(module).items():
        owner_path, _, name = path.rpartition(".")
        owner = module.get_submodule(owner_path)
        new = done.get(id(tensor))
        if new is None:
            new = done[id(tensor)] = replacement(tensor)
        if isinstance(tensor, nn.Parameter):
            owner._parameters[name] = nn.Parameter(new, requires_grad=False)  # noqa: SLF001 - the name may have been tied
        else:
            vars(owner).pop(name, None)
            owner._buffers[name] = new  # noqa: SLF001 - register_buffer refuses names that are there


def stored(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's storage from its first element on, as contiguous uint8 on the CPU."""
    alone = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
    alone.copy_(tensor.detach())
    return torch.empty(0, dtype=torch.uint8).set_(alone.untyped_storage())
