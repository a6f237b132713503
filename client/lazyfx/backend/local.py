"""Compiling without the server: Inductor in this process, as backend="inductor" would."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions


def compile_here(
    module: GraphModule, inputs: Sequence[Any], options: BackendOptions
) -> Callable[..., Any]:
    """Compile with this process's own Inductor.

    Args:
        module: The graph, as dynamo captured it.
        inputs: Its example inputs.
        options: `mode` and `inductor` apply.

    Raises:
        Exception: Whatever Inductor raises.
    """
    settings: dict[str, Any] = {}
    if options.mode:
        settings["mode"] = options.mode
    if options.inductor:
        settings["options"] = dict(options.inductor)
    inductor = lookup_backend("inductor")
    compiled: Callable[..., Any] = inductor(module, list(inputs), **settings)
    return compiled
