"""Vision architectures."""

from __future__ import annotations

from typing import Any

from zoo.architecture import Architecture, image

CLASSIFIER = "AutoModelForImageClassification"


def _vit(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "image_size": 32,
        "patch_size": 8,
        **options,
    }


def _pyramid(**options: Any) -> dict[str, Any]:
    return {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 2, 1], **options}


ALL = [
    Architecture("vit", "vision", image, _vit(), CLASSIFIER),
    Architecture("deit", "vision", image, _vit(), "DeiTForImageClassification"),
    Architecture("beit", "vision", image,
                 _vit(use_relative_position_bias=True, layer_scale_init_value=0.1), CLASSIFIER),
    Architecture("dinov2", "vision", image, _vit(), CLASSIFIER),
    Architecture("swin", "vision", image,
                 {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2],
                  "num_heads": [2, 4], "window_size": 4}, CLASSIFIER),
    Architecture("convnext", "vision", image, _pyramid(), CLASSIFIER),
    Architecture("convnextv2", "vision", image, _pyramid(), CLASSIFIER),
    Architecture("resnet", "vision", image,
                 _pyramid(embedding_size=8, layer_type="bottleneck"), CLASSIFIER),
    Architecture("regnet", "vision", image,
                 _pyramid(embedding_size=8, groups_width=4), CLASSIFIER),
    Architecture("segformer", "vision", image,
                 {"hidden_sizes": [8, 16, 16, 32], "depths": [1, 1, 1, 1],
                  "num_attention_heads": [1, 2, 2, 4], "decoder_hidden_size": 16},
                 "AutoModelForSemanticSegmentation"),
    Architecture("mobilevit", "vision", image,
                 {"image_size": 32, "hidden_sizes": [16, 16, 16],
                  "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 16], "num_attention_heads": 4},
                 CLASSIFIER),
    Architecture("efficientnet", "vision", image,
                 {"image_size": 32, "width_coefficient": 0.25, "depth_coefficient": 0.25,
                  "hidden_dim": 320}, CLASSIFIER),
    Architecture("levit", "vision", lambda: image(64),
                 {"image_size": 64, "hidden_sizes": [16, 24, 32], "num_attention_heads": [2, 3, 4],
                  "depths": [1, 1, 1], "key_dim": [4, 4, 4]}, "LevitForImageClassification"),
    Architecture("poolformer", "vision", image, _pyramid(), CLASSIFIER),
    Architecture("mobilenet_v2", "vision", image,
                 {"image_size": 32, "depth_multiplier": 0.25}, CLASSIFIER),
    Architecture("hiera", "vision", image,
                 {"image_size": [32, 32], "embed_dim": 8, "depths": [1, 1, 1],
                  "num_heads": [1, 2, 2], "num_query_pool": 2, "masked_unit_size": [4, 4],
                  "masked_unit_attention": [True, False, False]}, CLASSIFIER),
    Architecture("focalnet", "vision", image,
                 {"image_size": 32, "embed_dim": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
                  "focal_levels": [2, 2], "focal_windows": [3, 3]}, CLASSIFIER),
    Architecture("glpn", "vision", image,
                 _pyramid(depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 2, 4],
                          decoder_hidden_size=16), "AutoModelForDepthEstimation"),
    Architecture("rt_detr", "detection", lambda: image(64),
                 {"d_model": 16, "encoder_hidden_dim": 16, "encoder_in_channels": [8, 16, 32],
                  "encoder_ffn_dim": 32, "encoder_attention_heads": 4, "num_queries": 4,
                  "decoder_in_channels": [16, 16, 16], "decoder_ffn_dim": 32, "decoder_layers": 2,
                  "decoder_attention_heads": 4, "num_denoising": 0, "hidden_expansion": 0.5,
                  "backbone_config": {
                      "model_type": "rt_detr_resnet", "embedding_size": 8, "depths": [1, 1, 1, 1],
                      "hidden_sizes": [8, 8, 16, 32], "layer_type": "basic",
                      "out_features": ["stage2", "stage3", "stage4"]}},
                 "AutoModelForObjectDetection"),
    Architecture("yolos", "detection", image, _vit(num_detection_tokens=4, image_size=[32, 32]),
                 "AutoModelForObjectDetection"),
    Architecture("detr", "detection", lambda: image(64),
                 {"d_model": 32, "encoder_layers": 1, "decoder_layers": 2,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                  "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "num_queries": 4,
                  "use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None,
                  "backbone_config": {
                      "model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 16],
                      "depths": [1, 1, 1, 1], "out_features": ["stage4"]}},
                 "AutoModelForObjectDetection"),
]  # fmt: skip
