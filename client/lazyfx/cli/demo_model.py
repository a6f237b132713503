"""The model of `lazyfx demo`: GPT-2 with random weights, and passes for it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

import lazyfx
from lazyfx.errors import LazyfxError
from lazyfx.shared.pass_specs import PassSpec

_TOKENS = 32
_HEAD_WIDTH = 64


@dataclass(frozen=True)
class DemoModel:
    """A model in eval mode, its exported program, and one input.

    Attributes:
        local: The model.
        program: The exported model.
        input_ids: Token ids of shape (1, 32).
        parameters: Number of parameters.
    """

    local: nn.Module
    program: ExportedProgram
    input_ids: Tensor
    parameters: int


def capture_gpt2(layers: int, width: int) -> DemoModel:
    """Create GPT-2 from its config, without downloading anything, and export it.

    Args:
        layers: Transformer blocks; 12 in GPT-2.
        width: Hidden size, a multiple of 64; 768 in GPT-2.

    Raises:
        LazyfxError: transformers is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            from transformers import GPT2Config, GPT2LMHeadModel
    except ImportError as error:
        raise LazyfxError(
            "the demo needs transformers; install it with: pip install 'lazyfx[demo]'"
        ) from error
    torch.manual_seed(0)
    config = GPT2Config(n_layer=layers, n_embd=width, n_head=width // _HEAD_WIDTH, use_cache=False)
    model = GPT2LMHeadModel(config).eval()
    input_ids = torch.randint(0, config.vocab_size, (1, _TOKENS))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(model, (), {"input_ids": input_ids}, strict=False)
    return DemoModel(model, program, input_ids, sum(p.numel() for p in model.parameters()))


def demo_passes(offered: Collection[str]) -> list[str | PassSpec]:
    """The passes of the demo that a server offers, in a sensible order."""
    wanted: list[str | PassSpec] = [
        "dead_code_elimination",
        "remove_dropout",
        "common_subexpression_elimination",
        "constant_fold",
        lazyfx.replace_pattern((_spelled_out_gelu, _gelu)),
        "normalize_arguments",
        "shape_propagation",
    ]
    return [p for p in wanted if (p if isinstance(p, str) else p.name) in offered]


def _spelled_out_gelu(x: Tensor) -> Tensor:
    """GELU as in GPT-2, in the operators that torch.export captures."""
    aten = torch.ops.aten
    cube = aten.mul.Tensor(aten.pow.Tensor_Scalar(x, 3.0), 0.044715)
    inner = aten.mul.Tensor(aten.add.Tensor(x, cube), 0.7978845608028654)
    half = aten.mul.Tensor(x, 0.5)
    result: Tensor = aten.mul.Tensor(half, aten.add.Tensor(aten.tanh.default(inner), 1.0))
    return result


def _gelu(x: Tensor) -> Tensor:
    """The same as one operator."""
    result: Tensor = torch.ops.aten.gelu.default(x, approximate="tanh")
    return result
