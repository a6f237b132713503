"""One entry of the zoo: a transformers architecture, its tiny configuration, and one input."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from torch import Tensor, nn

Example = dict[str, Tensor]
VOCABULARY = 101
BATCH = 2


@dataclass(frozen=True)
class Architecture:
    """What is needed to build a model with random weights.

    Attributes:
        name: `model_type` of transformers.
        kind: What it is, for people.
        example: Makes the keyword arguments of one call.
        options: Options of the configuration that make it tiny.
        head: Name of the transformers class that builds the model; `AutoModel...`
            classes find the model by its configuration.
    """

    name: str
    kind: str
    example: Callable[[], Example]
    options: Mapping[str, Any] = field(default_factory=dict)
    head: str = "AutoModel"

    def build(self) -> tuple[nn.Module, Example]:
        """The model in eval mode, and the keyword arguments of one call; same at each call."""
        import transformers

        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(self.name, **self.options)
        head = getattr(transformers, self.head)
        made = head.from_config(config) if self.head.startswith("Auto") else head(config)
        torch.manual_seed(1)
        return made.eval(), self.example()


def small(layers: int = 2, **options: Any) -> dict[str, Any]:
    """The options that most text configurations share."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        **options,
    }


def decoder(**options: Any) -> dict[str, Any]:
    """Options of a decoder that keeps no cache, with grouped key-value heads."""
    return small(**{"num_key_value_heads": 2, "use_cache": False, **options})


def ids(length: int = 8) -> Tensor:
    """Token ids, none of them special."""
    return torch.randint(5, VOCABULARY, (BATCH, length))


def text() -> Example:
    """Token ids and a mask of ones."""
    tokens = ids()
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def tokens_only() -> Example:
    """Token ids alone."""
    return {"input_ids": ids()}


def pair() -> Example:
    """Source and target ids."""
    return {"input_ids": ids(), "decoder_input_ids": ids(6)}


def image(size: int = 32) -> Example:
    """Two pictures."""
    return {"pixel_values": torch.randn(BATCH, 3, size, size)}


def wave(samples: int = 1600) -> Example:
    """Two mono sounds."""
    return {"input_values": torch.randn(BATCH, samples)}
