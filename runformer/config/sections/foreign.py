"""Keys of models and schemas that cannot be run here: known, so that the reason is told, and accepted only when off."""

from __future__ import annotations

from collections.abc import Mapping

from runformer.config.schema import Key
from runformer.config.sections.reasons import MOE, OTHER_MODEL

_EXPERTS = "mixtures of experts are not supported"
_LATENT = "multi-head latent attention (DeepSeek) is not supported"
_SEVERAL_TOKENS = "predicting several tokens at once is not supported"
_VISION = "vision models are not supported"
_SPARSE = "DeepSeek's sparse attention and residual streams are not supported"
PYNATIVE = "it belongs to the schema of MindSpore Transformers 2's PyNative trainer, which is not supported"
_UNDER_MODEL = "under model itself it belongs to the PyNative trainer's schema; here it stands under model.model_config"


def _refused(reason: str, meanings: Mapping[str, str]) -> dict[str, Key]:
    return {name: Key("refused", meaning, reason) for name, meaning in meanings.items()}


def _no_effect(reason: str, meanings: Mapping[str, str]) -> dict[str, Key]:
    return {name: Key("no effect", meaning, reason) for name, meaning in meanings.items()}


_EXPERT_KEYS = {
    "moe_aux_loss_coeff": "Weight of the loss that balances experts.",
    "moe_grouped_gemm": "Whether the products of all experts are one.",
    "moe_intermediate_size": "Inner width of an expert.",
    "moe_router_bias_update_rate": "Step of the bias that balances experts.",
    "moe_router_load_balancing_type": "How experts are balanced.",
    "moe_token_drop_policy": "Which tokens a full expert drops.",
    "num_experts_per_tok": "Experts that a token visits.",
}
_MORE_EXPERT_KEYS = {
    "moe_router_dtype": "Dtype of the router.",
    "moe_router_enable_expert_bias": "Whether a bias balances experts.",
    "moe_router_force_expert_balance": "Whether tokens are spread evenly, for tests.",
    "moe_router_group_topk": "Groups of experts that a token visits.",
    "moe_router_score_function": "Function of the router's scores.",
    "moe_shared_expert_intermediate_size": "Inner width of the shared expert.",
    "n_group": "Groups of experts.",
    "n_routed_experts": "Number of experts.",
    "n_shared_experts": "Experts that all tokens visit.",
}
_ROUTING_KEYS = {
    "norm_topk_prob": "Whether the shares of a token's experts sum to 1.",
    "routed_scaling_factor": "Scale of the experts' output.",
}
_LATENT_KEYS = {
    "multi_latent_attention": "Whether keys and values share a latent vector.",
    "kv_lora_rank": "Width of the latent vector of keys and values.",
    "q_lora_rank": "Width of the latent vector of queries.",
    "qk_nope_head_dim": "Width of a head's part without positions.",
    "qk_rope_head_dim": "Width of a head's part with positions.",
    "v_head_dim": "Width of a head's values.",
    "mla_qkv_concat": "Whether the latent projections are one product.",
}
_SEVERAL_TOKENS_KEYS = {
    "mtp_loss_factor": "Weight of the loss of further tokens.",
    "num_nextn_predict_layers": "Layers that predict further tokens.",
}
_SPARSE_KEYS = {
    "activation_func_clamp_value": "Bound of the activation.",
    "apply_dsa_kernel_fusion": "Whether sparse attention is one kernel.",
    "compress_ratios": "How much each layer compresses its keys.",
    "compress_rope_theta": "Rotary base of compressed keys.",
    "csa_dense_mode": "Whether compressed attention reads all keys.",
    "csa_window_size": "Window of compressed attention.",
    "dsa_indexer_loss_coeff": "Weight of the indexer's loss.",
    "dsa_indexer_use_sparse_loss": "Whether that loss is over the chosen keys.",
    "enable_hyper_connections": "Whether there are several residual streams.",
    "experimental_attention_variant": "Kind of attention.",
    "index_head_dim": "Width of the indexer's heads.",
    "index_n_heads": "Heads of the indexer.",
    "index_topk": "Keys that the indexer chooses.",
    "mhc_init_gating_factor": "First gate of a residual stream.",
    "mhc_sinkhorn_iterations": "Steps that balance the residual streams.",
    "num_hash_layers": "Layers that choose experts by hashing.",
    "num_residual_streams": "Number of residual streams.",
    "o_groups": "Groups of the output projection.",
    "o_lora_rank": "Inner width of the output projection.",
}

OF_OTHER_MODELS: dict[str, Key] = {
    **_refused(_EXPERTS, _EXPERT_KEYS),
    **_refused(_LATENT, _LATENT_KEYS),
    **_refused(_SEVERAL_TOKENS, {"mtp_loss_factor": _SEVERAL_TOKENS_KEYS["mtp_loss_factor"]}),
    **_refused(
        _VISION,
        {
            "text_config": "The text part of a model of images and text.",
            "vision_config": "The image part of a model of images and text.",
            "vision_model": "The image part of a model of images and text.",
        },
    ),
    **_refused(
        OTHER_MODEL,
        {
            "embedding_size": "Width of the embedding, where it is not hidden_size.",
            "num_labels": "Number of classes.",
            "post_layernorm_residual": "Whether the residual is taken after the norm.",
        },
    ),
    **_no_effect(MOE, _ROUTING_KEYS),
    **_no_effect(
        OTHER_MODEL,
        {
            "dtype": "Dtype of CLIP.",
            "expand_ratio": "Inner width of the feed-forward, in hidden sizes.",
            "logit_scale_init_value": "First scale of CLIP's logits.",
            "projection_dim": "Width of CLIP's joint space.",
        },
    ),
}
"""Keys of ``model.model_config`` that other families have."""

OF_OTHER_ADAPTERS: dict[str, Key] = _no_effect(
    "belongs to another kind of adapter",
    {
        "adapter_path": "slora: file that names the adapters.",
        "dropout_prob": "ptuning2: dropout.",
        "dropout_rate": "prefixtuning: dropout.",
        "max_loras": "slora: most adapters at a time.",
        "mid_dim": "prefixtuning: inner width of the prefix's projection.",
        "pre_seq_len": "ptuning2: length of the prefix.",
        "prefix_projection": "ptuning2: whether the prefix is projected.",
        "prefix_token_num": "prefixtuning: length of the prefix.",
        "projection_dim": "ptuning2: inner width of that projection.",
    },
)
"""Keys of ``pet_config`` that other adapters have."""

_SHAPE_KEYS = {
    "add_bias_linear": "Whether all linear layers but q, k, v have biases.",
    "architectures": "Hugging Face's class of the model.",
    "attention_dropout": "Dropout of attention weights.",
    "beta_fast": "YARN: turns of the fast end.",
    "beta_slow": "YARN: turns of the slow end.",
    "compute_dtype": "Dtype of matrix products.",
    "gated_linear_unit": "Whether the feed-forward is gated.",
    "hidden_act": "Activation.",
    "hidden_dropout": "Dropout after each layer.",
    "hidden_size": "Width of a token's vector.",
    "initializer_range": "Deviation of fresh weights.",
    "layernorm_compute_dtype": "Dtype of norms.",
    "max_position_embeddings": "Longest sequence.",
    "model_type": "Hugging Face's name of the family.",
    "mscale": "YARN: scale of attention.",
    "mscale_all_dim": "YARN: scale over all of it.",
    "num_attention_heads": "Number of attention heads.",
    "num_hidden_layers": "Number of layers.",
    "offset": "Layers moved between stages.",
    "pad_token_id": "Token that fills short rows.",
    "params_dtype": "Dtype of the weights.",
    "position_embedding_type": "Kind of positions.",
    "qk_layernorm": "Whether q and k are normed.",
    "rms_norm_eps": "Added under the root of a norm.",
    "rope_theta": "Base of rotary positions.",
    "rotary_dtype": "Dtype of rotary tables.",
    "rotary_scaling_factor": "YaRN's factor.",
    "seq_length": "Tokens in a training row.",
    "softmax_compute_dtype": "Dtype of softmax.",
    "use_attn_mask_compression": "Whether the mask is compressed.",
    "use_flash_attention": "Whether attention is fused.",
    "use_pad_tokens": "Whether rows are filled.",
    "vocab_size": "Number of tokens.",
}

UNDER_MODEL: dict[str, Key] = {
    **_refused(_UNDER_MODEL, _SHAPE_KEYS | _ROUTING_KEYS),
    **_refused(_EXPERTS, _EXPERT_KEYS | _MORE_EXPERT_KEYS),
    **_refused(_LATENT, _LATENT_KEYS),
    **_refused(_SEVERAL_TOKENS, _SEVERAL_TOKENS_KEYS),
    **_refused(_SPARSE, _SPARSE_KEYS),
}
"""Keys directly under ``model``, where the PyNative trainer's schema has the model's description."""

PYNATIVE_SECTIONS: dict[str, Key] = _refused(
    PYNATIVE,
    {
        "checkpoint": "What is saved and loaded.",
        "lr_scheduler": "The curve of the learning rate.",
        "parallelism": "Over how many devices work is split.",
        "recompute": "Activations that are recomputed.",
        "training": "How long and in what portions to train.",
    },
)
"""Sections of that schema at the top level."""

PYNATIVE_DATASET: dict[str, Key] = _refused(PYNATIVE, {"dataloader": "Which files rows come from."})
"""And in ``train_dataset``."""
