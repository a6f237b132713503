"""Audio architectures."""

from __future__ import annotations

from typing import Any

import torch

from zoo.architecture import BATCH, Architecture, Example, ids, wave


def _waves(**options: Any) -> dict[str, Any]:
    return {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "conv_dim": [8, 8, 8],
        "conv_stride": [5, 4, 4],
        "conv_kernel": [10, 4, 4],
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 2,
        "vocab_size": 101,
        **options,
    }


def _mel() -> Example:
    return {"input_features": torch.randn(BATCH, 80, 40), "decoder_input_ids": ids(6)}


def _spectrogram() -> Example:
    return {"input_values": torch.randn(BATCH, 32, 16)}


ALL = [
    Architecture("wav2vec2", "audio", wave, _waves(), "AutoModelForCTC"),
    Architecture("hubert", "audio", wave, _waves(do_stable_layer_norm=True,
                                                 feat_extract_norm="layer"), "AutoModelForCTC"),
    Architecture("wavlm", "audio", wave, _waves(), "AutoModelForCTC"),
    Architecture("wav2vec2-conformer", "audio", wave, _waves(), "AutoModelForCTC"),
    Architecture("sew", "audio", wave, _waves(squeeze_factor=2), "AutoModelForCTC"),
    Architecture("speech_to_text", "audio to text",
                 lambda: {"input_features": torch.randn(BATCH, 40, 16),
                          "decoder_input_ids": ids(6)},
                 {"vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                  "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 40,
                  "max_target_positions": 32, "input_feat_per_channel": 16, "conv_channels": 32,
                  "use_cache": False},
                 "AutoModelForSpeechSeq2Seq"),
    Architecture("whisper", "audio to text", _mel,
                 {"vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
                  "encoder_attention_heads": 4, "decoder_attention_heads": 4,
                  "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_source_positions": 20,
                  "max_target_positions": 32, "num_mel_bins": 80, "use_cache": False,
                  "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
                  "decoder_start_token_id": 1, "suppress_tokens": None,
                  "begin_suppress_tokens": None},
                 "AutoModelForSpeechSeq2Seq"),
    Architecture("audio-spectrogram-transformer", "audio", _spectrogram,
                 {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
                  "intermediate_size": 64, "patch_size": 8, "max_length": 32, "num_mel_bins": 16,
                  "frequency_stride": 8, "time_stride": 8},
                 "AutoModelForAudioClassification"),
    Architecture("dac", "audio codec", lambda: {"input_values": torch.randn(BATCH, 1, 256)},
                 {"encoder_hidden_size": 8, "decoder_hidden_size": 32, "n_codebooks": 2,
                  "downsampling_ratios": [2, 4], "upsampling_ratios": [4, 2],
                  "codebook_size": 16, "codebook_dim": 4}),
    Architecture("encodec", "audio codec",
                 lambda: {"input_values": torch.randn(BATCH, 1, 640)},
                 {"num_filters": 4, "hidden_size": 16, "codebook_size": 16, "codebook_dim": 16,
                  "upsampling_ratios": [4, 4], "num_lstm_layers": 1}),
]  # fmt: skip
