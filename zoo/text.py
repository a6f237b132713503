"""Text architectures: encoders, decoders, encoder-decoders, mixtures of experts, state spaces."""

from __future__ import annotations

from zoo.architecture import Architecture, decoder, ids, pair, small, text, tokens_only

CAUSAL = "AutoModelForCausalLM"
SEQ2SEQ = "AutoModelForSeq2SeqLM"
MASKED = "AutoModelForMaskedLM"

_BART = {
    "vocab_size": 101, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 4, "decoder_attention_heads": 4, "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64, "max_position_embeddings": 64, "use_cache": False,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}  # fmt: skip
_T5 = {
    "vocab_size": 101, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 4, "use_cache": False, "decoder_start_token_id": 0,
}  # fmt: skip

ENCODERS = [
    Architecture("bert", "text encoder", text, small(), MASKED),
    Architecture("roberta", "text encoder", text, small(max_position_embeddings=80)),
    Architecture("distilbert", "text encoder", text,
                 {"vocab_size": 101, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64,
                  "max_position_embeddings": 64}),
    Architecture("albert", "text encoder", text, small(embedding_size=16)),
    Architecture("electra", "text encoder", text, small(embedding_size=16)),
    Architecture("deberta", "text encoder", text,
                 small(relative_attention=True, pos_att_type=["c2p", "p2c"])),
    Architecture("deberta-v2", "text encoder", text,
                 small(relative_attention=True, pos_att_type=["p2c", "c2p"],
                       position_buckets=8, conv_kernel_size=3)),
    Architecture("mpnet", "text encoder", text, small()),
    Architecture("modernbert", "text encoder", text,
                 small(local_attention=4, global_attn_every_n_layers=2, cls_token_id=1,
                       sep_token_id=2, reference_compile=False)),
    Architecture("fnet", "text encoder", tokens_only,
                 small(tpu_short_seq_length=8)),
    Architecture("squeezebert", "text encoder", text,
                 small(embedding_size=32, q_groups=2, k_groups=2, v_groups=2,
                       post_attention_groups=1, intermediate_groups=2, output_groups=2)),
    Architecture("xlm-roberta", "text encoder", text, small(max_position_embeddings=80)),
]  # fmt: skip

DECODERS = [
    Architecture("gpt2", "text decoder", text,
                 small(n_positions=64, use_cache=False), CAUSAL),
    Architecture("gpt_neo", "text decoder", text,
                 {"vocab_size": 101, "hidden_size": 32, "num_layers": 2, "num_heads": 4,
                  "attention_types": [[["global", "local"], 1]], "window_size": 4,
                  "max_position_embeddings": 64, "use_cache": False}, CAUSAL),
    Architecture("gpt_neox", "text decoder", text, small(use_cache=False), CAUSAL),
    Architecture("gptj", "text decoder", text,
                 {"vocab_size": 101, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64,
                  "rotary_dim": 4, "use_cache": False}, CAUSAL),
    Architecture("opt", "text decoder", text,
                 {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "ffn_dim": 64,
                  "num_attention_heads": 4, "max_position_embeddings": 64,
                  "word_embed_proj_dim": 16, "use_cache": False}, CAUSAL),
    Architecture("bloom", "text decoder", text,
                 {"vocab_size": 101, "hidden_size": 32, "n_layer": 2, "n_head": 4,
                  "use_cache": False}, CAUSAL),
    Architecture("llama", "text decoder", text, decoder(), CAUSAL),
    Architecture("mistral", "text decoder", text, decoder(sliding_window=4), CAUSAL),
    Architecture("qwen2", "text decoder", text, decoder(), CAUSAL),
    Architecture("qwen3", "text decoder", text, decoder(head_dim=8), CAUSAL),
    Architecture("gemma", "text decoder", text, decoder(head_dim=8), CAUSAL),
    Architecture("gemma2", "text decoder", text,
                 decoder(head_dim=8, sliding_window=4, query_pre_attn_scalar=8), CAUSAL),
    Architecture("phi", "text decoder", text, decoder(partial_rotary_factor=0.5), CAUSAL),
    Architecture("phi3", "text decoder", text, decoder(), CAUSAL),
    Architecture("falcon", "text decoder", text,
                 small(use_cache=False, new_decoder_architecture=True, num_kv_heads=2), CAUSAL),
    Architecture("stablelm", "text decoder", text, decoder(), CAUSAL),
    Architecture("cohere", "text decoder", text, decoder(), CAUSAL),
    Architecture("olmo2", "text decoder", text, decoder(), CAUSAL),
    Architecture("mpt", "text decoder", text,
                 {"vocab_size": 101, "d_model": 32, "n_layers": 2, "n_heads": 4,
                  "max_seq_len": 64, "expansion_ratio": 2, "use_cache": False}, CAUSAL),
]  # fmt: skip

PAIRS = [
    Architecture("t5", "encoder-decoder", pair, _T5, SEQ2SEQ),
    Architecture("bart", "encoder-decoder", pair, _BART, SEQ2SEQ),
    Architecture("mbart", "encoder-decoder", pair, _BART, SEQ2SEQ),
    Architecture("pegasus", "encoder-decoder", pair, _BART, SEQ2SEQ),
    Architecture("marian", "encoder-decoder", pair, _BART, SEQ2SEQ),
    Architecture("m2m_100", "encoder-decoder", pair, _BART, SEQ2SEQ),
]

EXPERTS = [
    Architecture("mixtral", "mixture of experts", text,
                 decoder(num_local_experts=4, num_experts_per_tok=2), CAUSAL),
    Architecture("qwen2_moe", "mixture of experts", text,
                 decoder(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16,
                         shared_expert_intermediate_size=16), CAUSAL),
    Architecture("deepseek_v3", "mixture of experts", text,
                 decoder(num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2,
                         n_group=2, topk_group=1, moe_intermediate_size=16, q_lora_rank=8,
                         kv_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
                         first_k_dense_replace=1), CAUSAL),
    Architecture("switch_transformers", "mixture of experts", pair,
                 {**_T5, "num_experts": 4, "num_sparse_encoder_layers": 1,
                  "num_sparse_decoder_layers": 1, "expert_capacity": 8}, SEQ2SEQ),
]  # fmt: skip

STATE_SPACES = [
    Architecture("mamba", "state space", tokens_only,
                 {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                  "use_cache": False}, CAUSAL),
    Architecture("mamba2", "state space", tokens_only,
                 {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8,
                  "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 4,
                  "use_cache": False}, CAUSAL),
    Architecture("rwkv", "state space", tokens_only,
                 {"vocab_size": 101, "hidden_size": 32, "num_hidden_layers": 2,
                  "attention_hidden_size": 32, "intermediate_size": 64, "context_length": 64,
                  "use_cache": False}, CAUSAL),
    Architecture("jamba", "state space and attention", text,
                 decoder(attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
                         expert_layer_offset=1, num_experts=4, num_experts_per_tok=2,
                         mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False), CAUSAL),
    Architecture("recurrent_gemma", "state space and attention",
                 lambda: {"input_ids": ids()},
                 small(num_key_value_heads=1, lru_width=32, attention_window_size=4,
                       layers=3, use_cache=False), CAUSAL),
]  # fmt: skip

ALL = [*ENCODERS, *DECODERS, *PAIRS, *EXPERTS, *STATE_SPACES]
