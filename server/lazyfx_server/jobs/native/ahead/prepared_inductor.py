"""Preload module of the fork server for native artifacts: compiles one graph.

Inductor prepares much on first use: it traces the patterns of its passes, collects decompositions
and lowerings, hashes torch's sources, and imports more modules. Done here once, before any request
is known, it does not delay each job; `docs/performance.md` says by how much. The graph is our own,
no kernel of it is compiled, and what is left in this process is the same for every job. A process
that is spawned for one job does not import this: it would prepare as much as it saves.
"""

from __future__ import annotations

import gc
import logging
import os
import tempfile

import torch
from torch.fx import symbolic_trace
from torch.nn import functional

from lazyfx.shared.native import torch_inductor
from lazyfx_server.jobs.native.ahead import inductor_preload
from lazyfx_server.jobs.native.toolchain.torch_inductor_kernels import omitting_kernels
from lazyfx_server.jobs.native.torch_inductor_codegen import (
    compile_ahead,
    compiling_for_nobody,
    fresh_fake_mode,
)

__all__: list[str] = []

_ = inductor_preload  # imported for its own sake

_log = logging.getLogger(__name__)

_WIDTH = 16
_CACHE = "TORCHINDUCTOR_CACHE_DIR"


def _usual_layers(
    ids: torch.Tensor,
    mask: torch.Tensor,
    table: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
) -> tuple[torch.Tensor]:
    """What models are made of: embedding, norm, attention, matrix products, dropout, a loss."""
    x = functional.embedding(ids, table)
    x = functional.dropout(functional.layer_norm(x, (_WIDTH,), bias, bias), 0.1)
    heads = functional.linear(x, weight, bias).view(2, 8, 2, 8).transpose(1, 2)
    mixed = functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=mask)
    x = x + functional.linear(mixed.transpose(1, 2).reshape(2, 8, _WIDTH), weight)
    x = torch.cat([functional.gelu(x), torch.tanh(x)], -1).softmax(-1)
    return (functional.cross_entropy(x.flatten(0, 1), ids.flatten()),)


def warm_up() -> None:
    """Compile a small graph, forward and backward, and discard the result."""
    mode = fresh_fake_mode()
    shapes: list[tuple[int, ...]] = [(10, _WIDTH), (_WIDTH, _WIDTH), (_WIDTH,)]
    inputs = [
        torch.zeros(2, 8, dtype=torch.int64),
        torch.ones(2, 1, 8, 8, dtype=torch.bool),
        *(torch.zeros(shape, requires_grad=True) for shape in shapes),
    ]
    fakes = [mode.from_tensor(value, static_shapes=True) for value in inputs]
    module = symbolic_trace(_usual_layers)
    names = (node for node in module.graph.nodes if node.op == "placeholder")
    for node, fake in zip(names, fakes, strict=True):
        node.meta["example_value"] = fake
    before = os.environ.get(_CACHE)
    with tempfile.TemporaryDirectory(prefix="lazyfx-warm-up-") as folder:
        os.environ[_CACHE] = folder
        try:
            with omitting_kernels(), compiling_for_nobody():
                compile_ahead(module, fakes, mode, {"compile_threads": 1})
        finally:
            os.environ.pop(_CACHE)
            if before is not None:
                os.environ[_CACHE] = before
    torch_inductor.torch_key()


try:
    warm_up()
except Exception:  # noqa: BLE001 - whatever it is, the server can work without
    # Jobs prepare for themselves what is missing, and report what is wrong.
    _log.exception("Inductor could not be prepared; each native compile will take longer")
gc.collect()
gc.freeze()
