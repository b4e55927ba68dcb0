"""Tiny models of mlx-lm: each architecture of the installed package, by names of arguments that most of them share."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import inspect
from pathlib import Path
from typing import Any

VOCABULARY = 64

_COMMON: dict[str, Any] = {
    "hidden_size": 32, "dim": 32, "d_model": 32, "n_embd": 32, "model_dim": 32, "num_hidden_layers": 2, "n_layers": 2,
    "n_layer": 2, "num_layers": 2, "num_transformer_layers": 2, "intermediate_size": 48, "mlp_hidden_size": 48, "ffn_dim": 48,
    "ffn_hidden_size": 48, "n_inner": 48, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16,
    "num_attention_heads": 4, "n_heads": 4, "n_head": 4, "num_heads": 4, "num_key_value_heads": 2, "n_kv_heads": 2,
    "head_dim": 8, "rms_norm_eps": 1e-05, "norm_eps": 1e-05, "layer_norm_eps": 1e-05, "layer_norm_epsilon": 1e-05,
    "layernorm_epsilon": 1e-05, "layernorm_eps": 1e-05, "norm_epsilon": 1e-05, "vocab_size": 64, "n_vocab": 64, "n_positions":
    64, "n_ctx": 64, "max_position_embeddings": 64, "num_experts": 4, "n_routed_experts": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "num_experts_per_token": 2, "n_shared_experts": 1, "n_group": 1, "topk_group": 1, "rope_theta":
    10000.0, "tie_word_embeddings": False, "state_size": 8, "conv_kernel": 4, "expand": 2, "use_bias": False, "use_conv_bias":
    True, "time_step_rank": 4, "head_dim_": 8, "sliding_window": 8, "q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim":
    8, "qk_nope_head_dim": 8, "v_head_dim": 8, "attention_bias": False, "first_k_dense_replace": 1, "moe_layer_freq": 1,
    "rope_scaling": None, "partial_rotary_factor": 0.5, "n_groups": 1, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8, "linear_conv_kernel_dim": 4, "decoder_sparse_step": 1,
    "mlp_only_layers": [], "full_attention_interval": 2, "num_shared_experts": 1, "norm_topk_prob": True,
    "query_pre_attn_scalar": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "rope_local_base_freq":
    10000.0, "rope_traditional": False, "sliding_window_pattern": 2, "hidden_act": "silu", "embedding_multiplier": 1.0,
    "attention_multiplier": 0.35, "logits_scaling": 1.0, "residual_multiplier": 1.0, "mlp_bias": False, "lru_width": 32,
    "embeddings_scale_by_sqrt_dim": True, "attention_window_size": 8, "conv1d_width": 4, "logits_soft_cap": 30.0,
    "block_types": ["recurrent", "attention"], "logit_scale": 1.0, "layer_types": ["sliding_attention", "full_attention"],
    "conv_L_cache": 3, "conv_bias": False, "block_dim": 32, "block_ff_dim": 48, "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False, "full_attn_idxs": [1], "layer_norm_bias": False,
    "use_qkv_bias": False, "use_parallel_residual": True, "rotary_pct": 0.5, "kv_channels": 8, "seq_length": 64, "no_bias":
    True, "bias": False, "time_step_limit": (0.0, 100.0), "chunk_size": 16, "a_low_rank_dim": 8, "v_low_rank_dim": 8,
    "gate_low_rank_dim": 8, "decay_low_rank_dim": 8, "head_dim_v": 8, "time_step_min": 0.001, "time_step_max": 0.1,
    "max_seq_len": 64, "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"}, "mamba_n_heads": 8, "mamba_d_head":
    8, "mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_n_groups": 1, "mamba_proj_bias": False,
    "mamba_conv_bias": True, "mamba_d_ssm": 64, "mamba_chunk_size": 16, "mamba_num_heads": 8, "mamba_head_dim": 8,
    "ssm_state_size": 8, "hybrid_override_pattern": ["M", "*"], "mamba_hidden_act": "silu", "mlp_hidden_act": "relu2",
    "routed_scaling_factor": 1.0, "scoring_func": "sigmoid", "topk_method": "noaux_tc", "use_qk_norm": True, "rotary_dim": 4,
    "layer_norm_type": "layernorm", "num_nextn_predict_layers": 0, "original_max_position_embeddings": 64, "cla_share_factor":
    1, "use_cla": False, "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
    "mamba_dt_rank": 4, "initializer_range": 0.02,
}  # fmt: skip

# What single architectures need.
_OWN: dict[str, dict[str, Any]] = {
    "afm7": {
        "hidden_dim": 32, "num_kv_reuse_layers": 1, "num_kv_heads": 2, "num_layers": 3, "hidden_dim_scale_factor": 1.5,
    },
    "apertus": {
        "post_norm": False, "qk_norm": True,
    },
    "baichuan_m1": {
        "sliding_window_layers": [0], "conv_window": 2, "num_swa_attention_heads": 4, "num_swa_key_value_heads": 2,
    },
    "bailing_hybrid": {
        "layer_group_size": 2, "group_norm_size": 2,
    },
    "bailing_moe_linear": {
        "layer_group_size": 2, "group_norm_size": 2,
    },
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2}, "attn_config": {"kv_n_heads": 2,
        "clip_qkv": 8.0, "rope_theta": 10000.0},
    },
    "deepseek_v2": {
        "rope_scaling": {"type": "yarn", "factor": 2.0, "mscale": 1.0, "mscale_all_dim": 1.0, "beta_fast": 32, "beta_slow": 1,
        "original_max_position_embeddings": 64}, "topk_method": "gready", "scoring_func": "softmax",
    },
    "ernie4_5_moe": {
        "moe_num_experts": 4, "moe_k": 2, "moe_layer_start_index": 1,
    },
    "exaone4": {
        "sliding_window_pattern": "LG",
    },
    "exaone_moe": {
        "is_moe_layer": [False, True],
    },
    "glm_moe_dsa": {
        "index_head_dim": 8, "index_n_heads": 2, "index_topk": 4,
    },
    "gpt_neox": {
        "rotary_emb_base": 10000,
    },
    "granitemoehybrid": {
        "shared_intermediate_size": 48, "layer_types": ["mamba", "attention"],
    },
    "hunyuan": {
        "moe_topk": 2, "num_shared_expert": 1, "use_mixed_mlp_moe": True, "rope_scaling": {"type": "dynamic", "alpha": 1000.0,
        "factor": 1.0},
    },
    "kimi_linear": {
        "model_max_length": 64, "linear_attn_config": {"kda_layers": [1], "full_attn_layers": [2], "num_heads": 4, "head_dim":
        8, "short_conv_kernel_size": 4},
    },
    "lfm2_moe": {
        "use_expert_bias": True, "num_dense_layers": 1, "layer_types": ["conv", "full_attention"],
    },
    "llama4_text": {
        "intermediate_size_mlp": 48, "no_rope_layers": [1, 0],
    },
    "longcat_flash": {
        "attention_method": "MLA", "zero_expert_type": "identity", "moe_topk": 2, "expert_ffn_hidden_size": 16,
        "zero_expert_num": 1, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "router_bias": False,
    },
    "mellum": {
        "rope_parameters": {"sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"}, "full_attention":
        {"rope_theta": 10000.0, "rope_type": "default"}},
    },
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0], "add_swa_attention_sink_bias": True, "add_full_attention_sink_bias": False,
        "sliding_window_size": 8, "swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 8,
        "swa_v_head_dim": 8, "swa_rope_theta": 10000.0, "moe_layer_freq": [0, 1],
    },
    "minicpm": {
        "dim_model_base": 32, "scale_depth": 1.0, "scale_emb": 1.0,
    },
    "minimax": {
        "shared_intermediate_size": 0,
    },
    "ministral3": {
        "rope_parameters": {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "original_max_position_embeddings": 64},
    },
    "mistral4": {
        "rope_parameters": {"rope_theta": 10000.0, "llama_4_scaling_beta": 0.1, "rope_type": "default",
        "original_max_position_embeddings": 64},
    },
    "olmo_hybrid": {
        "linear_allow_neg_eigval": True, "layer_types": ["linear_attention", "full_attention"],
    },
    "openelm": {
        "ffn_dim_divisor": 8, "num_query_heads": [4, 4], "num_kv_heads": [2, 2], "ffn_multipliers": [1.0, 1.5],
        "ffn_with_glu": True, "normalize_qk_projections": True, "share_input_output_layers": True,
    },
    "phi3small": {
        "dense_attention_every_n_layers": 2, "ff_intermediate_size": 48, "gegelu_limit": 20.0, "mup_attn_multiplier": 1.0,
        "mup_use_scaling": True, "mup_embedding_multiplier": 1.0, "mup_width_multiplier": 8.0, "rope_embedding_base": 10000.0,
    },
    "plamo": {
        "n_shared_head": 2,
    },
    "prism_hadamard_qwen35": {
        "hidden_size": 128, "schema_version": 1, "tensor_namespace": "mlx-lm-text", "quantization": {"bits": 2, "group_size":
        128, "mode": "affine"}, "modules": [{"path": "model.embed_tokens", "embedding": True, "dtype": "float16", "block": 0},
        {"path": "model.layers.1.self_attn.q_proj", "embedding": False, "dtype": "float16", "block": 0}],
    },
    "spark2_5": {
        "hidden_act": "gelu",
        "rope_parameters": {
            "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
            "full_attention": {"rope_theta": 10000.0, "rope_type": "default"},
        },
    },
    "step3p5": {
        "num_attention_groups": 2,
    },
    "gemma3n": {
        "text_config": {"model_type": "gemma3n_text", "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48,
        "num_attention_heads": 4, "head_dim": 8, "rms_norm_eps": 1e-05, "vocab_size": 64, "num_key_value_heads": 2,
        "num_kv_shared_layers": 2, "vocab_size_per_layer_input": 64, "sliding_window": 8, "max_position_embeddings": 64,
        "rope_local_base_freq": 10000.0, "rope_theta": 10000.0, "final_logit_softcapping": 30.0, "layer_types":
        ["sliding_attention", "full_attention", "sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.95,
        0.0, 0.0, 0.0], "hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "altup_coef_clip": 120.0,
        "altup_correct_scale": True, "altup_active_idx": 0, "laurel_rank": 8, "rope_scaling": None},
    },
    "llama4": {
        "text_config": {"model_type": "llama4_text", "hidden_size": 32, "num_hidden_layers": 4, "intermediate_size": 48,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "attention_bias": False, "attention_chunk_size": 8,
        "rms_norm_eps": 1e-05, "vocab_size": 64, "interleave_moe_layer_step": 1, "intermediate_size_mlp": 48,
        "max_position_embeddings": 64, "num_experts_per_tok": 1, "num_local_experts": 2, "rope_scaling": None, "rope_theta":
        10000.0, "use_qk_norm": True},
    },
    "gemma4": {
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"],
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0, "layer_types": ["sliding_attention", "full_attention"],
    },
    "lille-130m": {"block_size": 64, "n_embd": 96},
    "longcat_flash_ngram": {
        "hidden_size": 48, "moe_topk": 2, "expert_ffn_hidden_size": 16, "zero_expert_num": 1, "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True, "zero_expert_type": "identity", "ngram_vocab_size_ratio": 3, "router_bias": False,
    },
    "minicpm3": {
        "dim_model_base": 32, "scale_depth": 1.0, "scale_emb": 1.0,
        "rope_scaling": {"original_max_position_embeddings": 64, "short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
    },
    "minimax_m3_vl": {"moe_layer_freq": [0, 1], "layer_types": None, "rope_parameters": None},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.5}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.5}},
        ],
    },
    "kimi_k3": {
        "hidden_act": "situ",
        "linear_attn_config": {
            "kda_layers": [1], "full_attn_layers": [2], "num_heads": 4, "head_dim": 8, "short_conv_kernel_size": 4,
        },
    },
    "muse_spark": {
        "num_shared_experts": 0, "post_norm_eps": 1e-5, "layer_rope_theta": [10000.0, 0.0], "output_multiplier": 1.0,
        "moe_hidden_size": 16,
    },
}  # fmt: skip

# They end the process: one where another package is not installed, the other since MLX writes beside its memory.
_ENDING = ("olmo", "phi3small")


def names() -> list[str]:
    """Return the names of the files of mlx-lm that define a model, without importing them; none if it is not installed."""
    package = importlib.util.find_spec("mlx_lm")
    if package is None or package.origin is None:
        return []
    found = []
    for path in sorted((Path(package.origin).parent / "models").glob("*.py")):
        text = path.read_text()
        if path.stem not in _ENDING and "\nclass Model(" in text and "\nclass ModelArgs" in text:
            found.append(path.stem)
    return found


def build(name: str) -> Any:
    """Return a tiny model of an architecture."""
    module = importlib.import_module(f"mlx_lm.models.{name}")
    return module.Model(arguments(module.ModelArgs, {**_COMMON, "model_type": name, **_OWN.get(name, {})}))


def arguments(kind: Any, given: dict[str, Any]) -> Any:
    known = inspect.signature(kind).parameters
    chosen = {key: value for key, value in given.items() if key in known}
    if "text_config" in known and "text_config" not in chosen:
        chosen["text_config"] = {**given}
    if dataclasses.is_dataclass(kind) and hasattr(kind, "from_dict"):
        return kind.from_dict(chosen)
    return kind(**chosen)
