"""Compiles without the server: runs Inductor in this process, like backend="inductor"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch._dynamo.backends.registry import lookup_backend
from torch.fx import GraphModule

from lazyfx.backend.options import BackendOptions
from lazyfx.shared.native.torch_inductor import mode_settings


def compile_locally(
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
    settings = dict(mode_settings(options.mode)) if options.mode else {}
    inductor: Any = lookup_backend("inductor")  # takes more than the backend protocol says
    compiled: Callable[..., Any] = inductor(
        module, list(inputs), config_patches={**settings, **options.inductor}
    )
    return compiled
