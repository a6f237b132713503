"""Text architectures with other attention than a full matrix: windows, hashes, pools, states."""

from __future__ import annotations

from zoo.architecture import Architecture, decoder, pair, small, text, tokens_only

CAUSAL = "AutoModelForCausalLM"
_KIND = "text, sparse attention"
_HYBRID = "state space and attention"
_LED = {
    "vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_encoder_position_embeddings": 64,
    "max_decoder_position_embeddings": 64, "attention_window": [4, 4], "use_cache": False,
}  # fmt: skip
_LONG_T5 = {
    "vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "use_cache": False, "decoder_start_token_id": 0,
    "local_radius": 3, "global_block_size": 4, "encoder_attention_type": "transient-global",
}  # fmt: skip

ALL = [
    Architecture("funnel", _KIND, text,
                 {"vocab_size": 101, "d_model": 32, "n_head": 4, "d_head": 8, "d_inner": 64,
                  "block_sizes": [1, 1], "block_repeats": [1, 1], "num_decoder_layers": 1},
                 "FunnelModel"),
    Architecture("longformer", _KIND, text, small(attention_window=[4, 4])),
    Architecture("led", _KIND, pair, _LED),
    Architecture("longt5", _KIND, pair, _LONG_T5),
    Architecture("big_bird", _KIND, text,
                 small(attention_type="block_sparse", block_size=1, num_random_blocks=1,
                       use_cache=False)),
    Architecture("reformer", _KIND, tokens_only,
                 {"vocab_size": 101, "hidden_size": 32, "attention_head_size": 8,
                  "num_attention_heads": 4, "feed_forward_size": 64, "num_buckets": 2,
                  "num_hashes": 2, "lsh_attn_chunk_length": 4, "local_attn_chunk_length": 4,
                  "axial_pos_shape": [2, 4], "axial_pos_embds_dim": [16, 16],
                  "max_position_embeddings": 64, "attn_layers": ["local", "lsh"],
                  "is_decoder": True, "use_cache": False, "hash_seed": 0}),
    Architecture("yoso", _KIND, text, small()),
    Architecture("convbert", "text encoder", text, small(embedding_size=32)),
    Architecture("canine", "text encoder", text,
                 small(num_hash_buckets=64, local_transformer_stride=4)),
    Architecture("xlnet", "text encoder", text,
                 {"vocab_size": 101, "d_model": 32, "n_layer": 2, "n_head": 4, "d_head": 8,
                  "d_inner": 64, "mem_len": 8, "use_mems_eval": True}),
    Architecture("prophetnet", "encoder-decoder", pair,
                 {"vocab_size": 101, "hidden_size": 32, "num_encoder_layers": 2,
                  "num_decoder_layers": 2, "num_encoder_attention_heads": 4,
                  "num_decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
                  "max_position_embeddings": 64, "use_cache": False}),
    Architecture("gpt_oss", "mixture of experts", text,
                 decoder(head_dim=8, num_local_experts=4, num_experts_per_tok=2, sliding_window=4),
                 CAUSAL),
    Architecture("granitemoehybrid", _HYBRID, text,
                 decoder(num_local_experts=4, num_experts_per_tok=2, shared_intermediate_size=64,
                         layer_types=["linear_attention", "full_attention"], mamba_n_heads=8,
                         mamba_n_groups=1, mamba_d_state=8, mamba_d_head=8, mamba_chunk_size=4),
                 CAUSAL),
    Architecture("qwen3_next", _HYBRID, text,
                 decoder(head_dim=8, layer_types=["linear_attention", "full_attention"],
                         linear_key_head_dim=8, linear_value_head_dim=8, linear_num_key_heads=2,
                         linear_num_value_heads=4, num_experts=4, num_experts_per_tok=2,
                         moe_intermediate_size=16, shared_expert_intermediate_size=16), CAUSAL),
    Architecture("minimax", _HYBRID, text,
                 decoder(num_local_experts=4, num_experts_per_tok=2, block_size=4,
                         layer_types=["full_attention", "linear_attention"]), CAUSAL),
    Architecture("lfm2", _HYBRID, text,
                 decoder(layer_types=["conv", "full_attention"], conv_L_cache=3), CAUSAL),
]  # fmt: skip
