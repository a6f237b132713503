"""Architectures that read numbers over time: forecasts, and films."""

from __future__ import annotations

import torch

from zoo.architecture import BATCH, Architecture, Example

_FORECAST = {
    "prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 1,
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "use_cache": False,
}  # fmt: skip
_FILM = {
    "image_size": 32, "patch_size": 8, "num_frames": 4, "hidden_size": 32,
    "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
}  # fmt: skip


def _series() -> Example:
    past, future = 10, 4
    return {
        "past_values": torch.rand(BATCH, past),
        "past_time_features": torch.rand(BATCH, past, 1),
        "past_observed_mask": torch.ones(BATCH, past),
        "future_values": torch.rand(BATCH, future),
        "future_time_features": torch.rand(BATCH, future, 1),
    }


def _channels() -> Example:
    return {"past_values": torch.rand(BATCH, 32, 3)}


def _film() -> Example:
    return {"pixel_values": torch.randn(BATCH, 4, 3, 32, 32)}


ALL = [
    Architecture("time_series_transformer", "time series", _series, _FORECAST),
    Architecture("informer", "time series", _series, _FORECAST),
    Architecture("autoformer", "time series", _series, {**_FORECAST, "label_length": 2,
                                                       "moving_average": 3}),
    Architecture("patchtst", "time series", _channels,
                 {"num_input_channels": 3, "context_length": 32, "patch_length": 8,
                  "patch_stride": 8, "d_model": 16, "num_hidden_layers": 2,
                  "num_attention_heads": 4, "ffn_dim": 32}),
    Architecture("videomae", "video", _film,
                 {**_FILM, "tubelet_size": 2, "decoder_hidden_size": 32}),
    Architecture("timesformer", "video", _film, _FILM),
]  # fmt: skip
