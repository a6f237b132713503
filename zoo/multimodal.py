"""Architectures that read pictures and text, or boxes and text."""

from __future__ import annotations

from typing import Any

import torch

from zoo.architecture import BATCH, Architecture, Example, decoder, ids, image, small


def _both() -> Example:
    tokens = ids()
    # The last token ends a text.
    tokens[:, -1] = 2
    return {**image(), "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _picture_in_text() -> Example:
    """Ids in which the 16 places of the picture's patches hold the picture's token."""
    tokens = ids(20)
    tokens[:, 2:18] = _IMAGE_TOKEN
    return {**image(), "input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _boxes() -> Example:
    tokens = ids()
    corner = torch.randint(0, 400, (BATCH, 8, 2))
    boxes = torch.cat([corner, corner + 100], dim=-1)
    return {"input_ids": tokens, "bbox": boxes, "attention_mask": torch.ones_like(tokens)}


_IMAGE_TOKEN = 4


def _vision(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 32, "patch_size": 8, **options,
    }  # fmt: skip


ALL = [
    Architecture("clip", "vision and text", _both,
                 {"text_config": small(), "vision_config": _vision(), "projection_dim": 16}),
    Architecture("siglip", "vision and text", _both,
                 {"text_config": small(), "vision_config": _vision()}),
    Architecture("blip", "vision and text", _both,
                 {"text_config": small(encoder_hidden_size=32, is_decoder=True, use_cache=False,
                                       sep_token_id=2),
                  "vision_config": _vision(), "projection_dim": 16,
                  "image_text_hidden_size": 16},
                 "BlipForConditionalGeneration"),
    Architecture("flava", "vision and text", _both,
                 {"image_config": _vision(), "text_config": small(),
                  "multimodal_config": {"hidden_size": 32, "num_hidden_layers": 2,
                                        "num_attention_heads": 4, "intermediate_size": 64},
                  "init_codebook": False, "hidden_size": 32, "projection_dim": 16}),
    Architecture("clipseg", "vision and text", _both,
                 {"text_config": small(), "vision_config": _vision(), "projection_dim": 16,
                  "extract_layers": [1, 1], "reduce_dim": 16, "decoder_num_attention_heads": 4,
                  "decoder_intermediate_size": 32},
                 "CLIPSegForImageSegmentation"),
    Architecture("vilt", "vision and text", _both,
                 small(image_size=32, patch_size=8, max_image_length=-1)),
    Architecture("llava", "vision and text", _picture_in_text,
                 {"text_config": decoder(model_type="llama"),
                  "vision_config": _vision(model_type="clip_vision_model", projection_dim=16),
                  "image_token_index": _IMAGE_TOKEN, "vision_feature_layer": -1},
                 "AutoModelForImageTextToText"),
    Architecture("layoutlm", "layout and text", _boxes, small(max_2d_position_embeddings=512)),
]  # fmt: skip
