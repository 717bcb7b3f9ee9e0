"""The ``model`` section: the sizes of a decoder under MindFormers' names, with Hugging Face's as aliases."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from runformer.config.schema import Key, group, no_effect, refused, sets
from runformer.config.sections.foreign import OF_OTHER_ADAPTERS, OF_OTHER_MODELS, UNDER_MODEL
from runformer.config.sections.reasons import (
    ALWAYS,
    ASCEND,
    DOCUMENTS,
    FOLDER_CODE,
    KERNELS,
    MOE,
    NAMES,
    OTHER_MODEL,
    PARALLEL,
    PLUGIN,
)

# What MindFormers writes for a dtype, and the name that the Task uses.
DTYPES = {
    "float32": "float32",
    "fp32": "float32",
    "float16": "float16",
    "fp16": "float16",
    "half": "float16",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
}
_DTYPE_NAMES = tuple(DTYPES)
# More than any model has, and little enough to be multiplied with each other.
_TOKENS = 2**31
_POSITIONS = 2**31
_WIDTH = 2**24
_LAYERS = 10_000
_LORA_ONLY = "lora is the only kind of adapter that is supported"


@dataclass(frozen=True, slots=True)
class PetConfig:
    """``pet_config``: adapters that are trained instead of the weights."""

    OTHERS: ClassVar[Mapping[str, Key]] = OF_OTHER_ADAPTERS

    pet_type: str | None = sets("model.lora", "Kind of adapter; lora.")
    lora_rank: int = sets("model.lora.rank", "Inner size of an adapter.", 8, least=1, most=_WIDTH)
    lora_alpha: float = sets("model.lora.alpha", "An adapter's output is scaled by alpha / rank.", 16.0, above=0)
    lora_dropout: float = sets("model.lora.dropout", "Dropout on an adapter's input.", 0.01, least=0, most=0.999)
    target_modules: str = sets(
        "model.lora.target_modules", "Regular expression of the layers that get one.", ".*wq|.*wk|.*wv|.*wo"
    )
    lora_a_init: str | None = no_effect(ALWAYS, "How A starts.")
    lora_b_init: str | None = no_effect(ALWAYS, "How B starts.")
    exclude_layers: list[str] | str | None = sets(
        "model.lora.exclude", "Regular expressions of layers that get none all the same."
    )
    freeze_include: list[str] | str | None = sets(
        "model.lora.freeze", "Patterns of weights that are not trained, as of file names; all if left out."
    )
    freeze_exclude: list[str] | str | None = sets(
        "model.lora.spare", "Patterns of weights among those that are trained. Adapters always are."
    )


@dataclass(frozen=True, slots=True)
class RopeFactors:
    """``scaling_factor`` as a group: rotary positions beyond the trained length."""

    factor: float | None = sets("model.options.rope_scaling.factor", "How much longer sequences become.", above=0)
    original_max_position_embeddings: int | None = sets(
        "model.options.rope_scaling.original_max_positions", "The trained length.", least=1
    )
    low_freq_factor: float = sets("model.options.rope_scaling.low_freq_factor", "LLAMA3: where blending begins.", 1.0)
    high_freq_factor: float = sets("model.options.rope_scaling.high_freq_factor", "LLAMA3: where it ends.", 4.0)
    beta_fast: float = sets("model.options.rope_scaling.beta_fast", "YARN: turns of the fast end.", 32.0, above=0)
    beta_slow: float = sets("model.options.rope_scaling.beta_slow", "YARN: turns of the slow end.", 1.0, above=0)
    mscale: float | None = sets("model.options.rope_scaling.mscale", "YARN: scale of attention.")
    mscale_all_dim: float | None = sets("model.options.rope_scaling.mscale_all_dim", "YARN: scale over all of it.")
    attention_factor: float | None = sets("model.options.rope_scaling.attention_factor", "YARN: scale given outright.")
    type: str | None = sets(
        "model.options.rope_scaling.kind", "Method, as Hugging Face writes it.", aliases=("rope_type",)
    )


@dataclass(frozen=True, slots=True)
class Architecture:
    """``model.arch``: MindFormers' class of the model."""

    type: str | None = sets("model", "Class of the model.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """``model.model_config``. Defaults are MindFormers' LlamaConfig; None where they follow from something else."""

    OTHERS: ClassVar[Mapping[str, Key]] = OF_OTHER_MODELS

    type: str | None = sets("model", "Class of the configuration, such as LlamaConfig.")
    model_type: str | None = sets("model", "Hugging Face's name of the family, such as qwen3.")
    architectures: str | list[str] | None = sets("model", "Hugging Face's class of the model.")
    vocab_size: int | None = sets("model.options.vocab_size", "Number of tokens.", least=1, most=_TOKENS)
    hidden_size: int | None = sets("model.options.hidden_size", "Width of a token's vector.", least=1, most=_WIDTH)
    intermediate_size: int | None = sets(
        "model.options.intermediate_size",
        "Inner width of the feed-forward.",
        aliases=("ffn_hidden_size",),
        least=1,
        most=_WIDTH,
    )
    multiple_of: int = sets(
        "model.options.intermediate_size", "A derived inner width is a multiple of it.", 256, least=1, most=_WIDTH
    )
    ffn_dim_multiplier: float | None = sets(
        "model.options.intermediate_size", "Stretches a derived width.", above=0, most=1000
    )
    num_layers: int | None = sets(
        "model.options.num_layers", "Number of layers.", aliases=("num_hidden_layers",), least=1, most=_LAYERS
    )
    num_heads: int | None = sets(
        "model.options.num_heads", "Number of attention heads.", aliases=("num_attention_heads",), least=1, most=_WIDTH
    )
    n_kv_heads: int | None = sets(
        "model.options.num_kv_heads",
        "Number of key and value heads.",
        aliases=("num_key_value_heads", "num_query_groups"),
        least=1,
        most=_WIDTH,
    )
    head_dim: int | None = sets(
        "model.options.head_dim", "Width of a head.", aliases=("kv_channels",), least=2, most=_WIDTH
    )
    seq_length: int | None = sets("model.sequence_length", "Tokens in a training row.", least=1, most=_POSITIONS)
    max_position_embedding: int | None = sets(
        "model.options.max_positions",
        "Longest sequence.",
        aliases=("max_position_embeddings",),
        least=1,
        most=_POSITIONS,
    )
    rms_norm_eps: float | None = sets(
        "model.options.rms_norm_eps", "Added under the root of a norm.", aliases=("layernorm_epsilon",), above=0
    )
    theta: float | None = sets(
        "model.options.rope_theta", "Base of rotary positions.", aliases=("rope_theta", "rotary_base"), above=0
    )
    extend_method: str | None = sets(
        "model.options.rope_scaling.kind",
        "How rotary positions are stretched.",
        choices=("PI", "NTK", "YARN", "LLAMA3", "DYNAMIC_NTK"),
    )
    scaling_factor: float | RopeFactors | None = sets(
        "model.options.rope_scaling", "How far they are stretched.", aliases=("rope_scaling",), above=0
    )
    position_embedding_type: str | None = sets(
        "model.options.rope_scaling.kind", "Kind of positions.", choices=("rope", "yarn")
    )
    rotary_scaling_factor: float | None = sets("model.options.rope_scaling.factor", "YaRN's factor.", above=0)
    qkv_has_bias: bool | None = sets(
        "model.options.qkv_bias", "Whether q, k and v have a bias.", aliases=("attention_bias", "add_qkv_bias")
    )
    attn_proj_has_bias: bool | None = sets(
        "model.options.attention_output_bias", "Whether attention's output has a bias.", aliases=("out_proj_has_bias",)
    )
    mlp_has_bias: bool | None = sets(
        "model.options.mlp_bias", "Whether the feed-forward has biases.", aliases=("mlp_bias",)
    )
    add_bias_linear: bool | None = sets("model.options.mlp_bias", "Whether all linear layers but q, k, v have biases.")
    qk_layernorm: bool | None = sets(
        "model.options.qk_norm", "Whether q and k are normed.", aliases=("use_qk_norm", "qk_norm")
    )
    tie_word_embeddings: bool | None = sets("model.options.tie_embeddings", "Whether input and output share weights.")
    untie_embeddings_and_output_weights: bool | None = sets(
        "model.options.tie_embeddings", "Whether input and output have weights of their own."
    )
    initializer_range: float | None = sets(
        "model.options.initializer_range", "Deviation of fresh weights.", aliases=("init_method_std",), above=0
    )
    bos_token_id: int | None = sets("model.options.bos_token_id", "Token that begins a text.")
    eos_token_id: int | list[int] | None = sets("model.options.eos_token_ids", "Tokens that end a text.")
    pad_token_id: int | None = sets("train.data.pad_token_id", "Token that fills short rows.")
    ignore_token_id: int = sets("train.data.ignore_token_id", "Label that is left out of the loss.", -100)
    input_sliced_sig: bool = sets("train.data.already_shifted", "Whether labels are shifted already.", False)
    compute_dtype: str | None = sets("model.precision.compute", "Dtype of matrix products.", choices=_DTYPE_NAMES)
    param_init_type: str | None = sets(
        "model.precision.parameters", "Dtype of the weights.", aliases=("params_dtype",), choices=_DTYPE_NAMES
    )
    layernorm_compute_type: str | None = sets(
        "model.precision.norm", "Dtype of norms.", aliases=("layernorm_compute_dtype",), choices=_DTYPE_NAMES
    )
    softmax_compute_type: str | None = sets(
        "model.precision.softmax", "Dtype of softmax.", aliases=("softmax_compute_dtype",), choices=_DTYPE_NAMES
    )
    rotary_dtype: str | None = sets("model.precision.rotary", "Dtype of rotary tables.", choices=_DTYPE_NAMES)
    max_decode_length: int | None = sets("predict.generation.max_length", "Longest text, with its prompt.", least=1)
    max_length: int | None = sets("predict.generation.max_length", "Longest text, with its prompt.", least=1)
    max_new_tokens: int | None = sets("predict.generation.max_new_tokens", "Most tokens to add.", least=1)
    do_sample: bool | None = sets("predict.generation.do_sample", "Whether tokens are drawn at random.")
    top_k: int | None = sets("predict.generation.top_k", "Tokens to draw from; 0: all.", least=0)
    top_p: float | None = sets("predict.generation.top_p", "Share of probability to draw from.", least=0, most=1)
    temperature: float | None = sets("predict.generation.temperature", "Flatness of the distribution.", above=0)
    repetition_penalty: float | None = sets(
        "predict.generation.repetition_penalty", "Divides logits of tokens seen before.", above=0
    )
    checkpoint_name_or_path: str | None = sets("load.path", "Weights, where load_checkpoint names none.")
    pet_config: PetConfig | None = sets("model.lora", "Adapters that are trained instead of the weights.")
    hidden_act: str | None = refused("SwiGLU is the only one", "Activation.", accepted=("silu", "swiglu"))
    normalization: str | None = refused("RMSNorm is the only one", "Kind of norm.", accepted=("RMSNorm",))
    gated_linear_unit: bool | None = no_effect(ALWAYS, "Whether the feed-forward is gated.")
    rmsnorm: bool | None = no_effect(ALWAYS, "Whether norms are RMSNorm.")
    rotary_pct: float | None = refused("all of a head is rotated", "Rotated share of a head.", accepted=(1.0,))
    quantization_config: Any = refused("quantised weights are not supported", "How weights are quantised.")
    quantization_bit: int | None = refused("quantised weights are not supported", "Bits of a weight.", accepted=(0,))
    moe_config: Any = no_effect(MOE, "Settings of experts.")
    expert_num: int | None = no_effect(
        MOE, "Number of experts.", aliases=("n_routed_experts", "num_experts", "num_moe_experts")
    )
    batch_size: int | None = no_effect("runner_config.batch_size and predict_batch_size decide", "Rows in a batch.")
    # Dropout: resolved together, since it matters in training only.
    emb_dropout_prob: float = sets("model", "Dropout after the embedding.", 0.0, aliases=("embed_dropout_prob",))
    hidden_dropout_prob: float = sets(
        "model", "Dropout after each layer.", 0.0, aliases=("hidden_dropout", "hidden_dropout_rate")
    )
    attention_dropout: float = sets(
        "model",
        "Dropout of attention weights.",
        0.0,
        aliases=("attention_dropout_prob", "attention_dropout_rate", "attention_probs_dropout_prob"),
    )
    use_past: bool | None = no_effect(KERNELS, "Whether keys and values are cached.")
    use_cache: bool | None = no_effect(KERNELS, "Whether keys and values are cached.")
    use_flash_attention: bool | None = no_effect(KERNELS, "Whether attention is fused.")
    use_prompt_flash_attention: bool | None = no_effect(KERNELS, "Whether attention over prompts is fused.")
    use_ring_attention: bool | None = no_effect(PARALLEL, "Whether attention is split by position.")
    use_eod_attn_mask_compression: bool | None = no_effect(DOCUMENTS, "Whether the mask is compressed.")
    use_attn_mask_compression: bool | None = no_effect(KERNELS, "Whether the mask is compressed.")
    use_rope_slice: bool | None = no_effect(KERNELS, "How rotary positions are computed.")
    fused_rms_norm: bool | None = no_effect(KERNELS, "Whether norms are fused.")
    is_dynamic: bool | None = no_effect(ASCEND, "Whether shapes may change.")
    block_size: int | None = no_effect(KERNELS, "Tokens in a block of the cache.")
    num_blocks: int | None = no_effect(KERNELS, "Number of blocks of the cache.")
    qkv_concat: bool | None = no_effect(KERNELS, "Whether q, k and v are one product.")
    mlp_concat: bool | None = no_effect(KERNELS, "Whether gate and up are one product.", aliases=("ffn_concat",))
    use_contiguous_weight_layout: bool | None = no_effect(
        KERNELS, "Order of joined weights.", aliases=("use_contiguous_weight_layout_attention",)
    )
    attention_softmax_in_fp32: bool | None = no_effect(KERNELS, "Whether softmax is float32.")
    fp32_residual_connection: bool | None = no_effect(KERNELS, "Whether sums of layers are float32.")
    residual_dtype: str | None = no_effect(KERNELS, "Dtype of sums of layers.", aliases=("res_dtype",))
    embedding_init_type: str | None = no_effect(KERNELS, "Dtype of the embedding.")
    bias_dropout_fusion: bool | None = no_effect(
        KERNELS, "Whether bias and dropout are fused.", aliases=("bias_swiglu_fusion",)
    )
    apply_query_key_layer_scaling: bool | None = no_effect(KERNELS, "Whether attention is scaled by layer.")
    compute_in_2d: bool | None = no_effect(KERNELS, "Whether activations are flattened.")
    offset: int | list[int] | list[list[int]] | None = sets(
        "parallel.extra_layers", "Layers of each pipeline stage beyond an equal number."
    )
    pp_interleave_num: int | None = sets(
        "parallel.chunks", "Number of stages of the pipeline that each device has.", least=1, most=_LAYERS
    )
    fine_grain_interleave: int | None = no_effect(PARALLEL, "Parts of a layer that overlap.", accepted=(1,))
    use_past_shard: bool | None = no_effect(PARALLEL, "Whether the cache is split.")
    parallel_optimizer: bool | None = no_effect(PARALLEL, "Whether optimizer states are sharded.")
    parallel_config: Any = no_effect(PARALLEL, "How work is split.")
    auto_map: Any = no_effect(FOLDER_CODE, "Files and classes of the model's folder.")
    auto_register: str | None = no_effect(PLUGIN, "File and class of a plug-in.")
    net_name: str | None = no_effect(NAMES, "Label.")
    rotary_emb_base: float | None = no_effect(OTHER_MODEL, "Base of rotary positions; theta is read.")
    rope_ratio: float | None = no_effect(OTHER_MODEL, "Stretches the rotary base.")
    pretrain_seqlen: int | None = no_effect(OTHER_MODEL, "The trained length.")
    pre_seq_len: int | None = no_effect(OTHER_MODEL, "Length of a trained prefix.")
    prefix_projection: bool | None = no_effect(OTHER_MODEL, "Whether a prefix is projected.")
    apply_residual_connection_post_layernorm: bool | None = no_effect(OTHER_MODEL, "Where layers are summed.")
    post_layer_norm: bool | None = no_effect(ALWAYS, "Whether the last layer is normed.")
    padded_vocab_size: int | None = no_effect(OTHER_MODEL, "Number of tokens of GLM.")
    multi_query_attention: bool | None = no_effect(OTHER_MODEL, "Whether heads of GLM share keys and values.")
    multi_query_group_num: int | None = no_effect(OTHER_MODEL, "Number of key and value heads of GLM.")
    router_dense_type: str | None = no_effect(MOE, "Dtype of the router.")
    use_pad_tokens: bool | None = no_effect(OTHER_MODEL, "Whether padding is passed to experts.")


@dataclass(frozen=True, slots=True)
class Model:
    """``model``: one model."""

    OTHERS: ClassVar[Mapping[str, Key]] = UNDER_MODEL

    model_config: ModelConfig = group("Sizes and settings of the model.", ModelConfig)
    arch: Architecture = group("MindFormers' class of the model.", Architecture)
    type: str | None = no_effect(NAMES, "Class of the model.")


@dataclass(frozen=True, slots=True)
class MoeConfig:
    """``moe_config``: experts. Only one expert, which is a dense model, can be run."""

    expert_num: int | None = no_effect(MOE, "Number of experts; 1 is a dense model.")
    num_experts_chosen: int | None = no_effect(MOE, "Experts that a token visits.")
    capacity_factor: float | None = no_effect(MOE, "Room in an expert.")
    aux_loss_factor: float | None = no_effect(MOE, "Weight of the balance loss.")
    routing_policy: str | None = no_effect(MOE, "How tokens find experts.")
    shared_expert_num: int | None = no_effect(MOE, "Experts that all tokens visit.")
