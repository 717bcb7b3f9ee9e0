"""From ``model`` and ``pretrained_model_dir`` to the ModelTask, and to the weights that are loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

from runformer.config.families import SUPPORTED, family_defaults, family_of
from runformer.config.paths import absolute, existing, is_placeholder, is_there
from runformer.config.problems import Report
from runformer.config.sections import Config
from runformer.config.sections.model import DTYPES, ModelConfig, PetConfig, RopeFactors
from runformer.config.task import (
    DType,
    LoadOptions,
    LoraOptions,
    ModelOptions,
    ModelTask,
    Precision,
    RopeScaling,
    Verify,
)

_MODEL = "model.model_config"
_ROPE_KINDS: dict[str, Literal["linear", "ntk", "yarn", "llama3"]] = {
    "PI": "linear",
    "NTK": "ntk",
    "YARN": "yarn",
    "LLAMA3": "llama3",
    "linear": "linear",
    "ntk": "ntk",
    "yarn": "yarn",
    "llama3": "llama3",
}
# A field of ModelOptions, and the key of model_config that sets it.
_PLAIN_FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_layers": "num_layers",
    "num_heads": "num_heads",
    "num_kv_heads": "n_kv_heads",
    "head_dim": "head_dim",
    "max_positions": "max_position_embedding",
    "rms_norm_eps": "rms_norm_eps",
    "rope_theta": "theta",
    "qkv_bias": "qkv_has_bias",
    "attention_output_bias": "attn_proj_has_bias",
    "mlp_bias": "mlp_has_bias",
    "qk_norm": "qk_layernorm",
    "initializer_range": "initializer_range",
    "bos_token_id": "bos_token_id",
    "pad_token_id": "pad_token_id",
}
_REQUIRED = ("vocab_size", "hidden_size", "num_layers", "num_heads")
# LlamaConfig's own ids, where the file gives none; other configurations have none.
_LLAMA_TOKENS: dict[str, Any] = {"bos_token_id": 1, "eos_token_ids": (2,), "pad_token_id": 0}
_LLAMA_SEQUENCE = 2048


def is_legacy(config: Config) -> bool:
    """Whether the model is described by a MindFormers class such as LlamaConfig, with that class's defaults."""
    return config.model.model_config.type is not None and not config.pretrained_model_dir


def model_task(config: Config, report: Report, *, training: bool) -> ModelTask:
    """The model that a task asks for.

    Raises:
        ConfigError: if sizes are missing or do not fit each other, or a folder is not there.
    """
    model = config.model.model_config
    if training:
        _refuse_dropout(model, report)
    described = ModelTask(
        name=config.trainer.model_name,
        options=None,
        pretrained_dir=None,
        precision=_precision(config),
        lora=None if model.pet_config is None else _lora(model.pet_config, report),
        sequence_length=model.seq_length,
    )
    given = _given_options(config, report)
    folder = _folder(config, given, report)
    if folder is not None or _awaits_folder(config, given, report):
        return replace(described, pretrained_dir=folder, overrides=given)
    sequence = model.seq_length or (_LLAMA_SEQUENCE if is_legacy(config) else None)
    options = _options(config, given, sequence, report)
    return replace(described, options=options, sequence_length=sequence)


def _folder(config: Config, given: dict[str, Any], report: Report) -> Path | None:
    """``pretrained_model_dir``; in a plan it may be missing."""
    if config.pretrained_model_dir:
        return existing(report, "pretrained_model_dir", config.pretrained_model_dir, flag="pretrained_model_dir")
    if _awaits_folder(config, given, report):
        report.fill_in("pretrained_model_dir", "is not set: a Hugging Face folder describes the model")
    return None


def _awaits_folder(config: Config, given: dict[str, Any], report: Report) -> bool:
    """Whether a plan is made for a model that is described later: by its folder, or since nothing is said of it yet."""
    silent = _family(config) is None and not any(name in given for name in _REQUIRED)
    later = config.pretrained_model_dir is not None or config.use_legacy is False or silent
    whole = _family(config) is not None and all(name in given for name in (*_REQUIRED, "intermediate_size"))
    return report.planning and later and not whole


def _family(config: Config) -> str | None:
    model = config.model.model_config
    return family_of(model.type, model.model_type, model.architectures, config.model.arch.type)


def load_options(config: Config, report: Report, *, training: bool) -> LoadOptions:
    """The weights to start from, and whether the run goes on from a checkpoint.

    Raises:
        ConfigError: if the path is not there.
    """
    resume = config.resume_training if training else False
    name = resume if isinstance(resume, str) and resume.lower() not in ("true", "false") else None
    load = LoadOptions(
        path=_weights(config, report),
        resume=name is not None or str(resume).lower() == "true",
        resume_name=name,
        strategy=_strategy(config, report),
        verify=cast(Verify, config.verify_checkpoint),
        skip_steps=0 if config.ignore_data_skip and config.data_skip_steps is None else config.data_skip_steps,
    )
    if load.resume and not config.load_checkpoint and not _has_checkpoints(absolute(config.output_dir)):
        text = f"is {resume!r}, and there is nothing to go on from: load_checkpoint is not set, and output_dir "
        report.error("resume_training", f"{text}{config.output_dir!r} holds no checkpoint")
    if not (training or load.path or config.pretrained_model_dir or config.load_checkpoint):
        report.fill_in("load_checkpoint", "is not set: --load_checkpoint PATH gives the weights")
    return load


def _strategy(config: Config, report: Report) -> Path | None:
    key = "src_strategy_path_or_dir"
    path = config.src_strategy_path_or_dir
    return existing(report, key, path, flag=key) if path else None


def _has_checkpoints(output_dir: Path) -> bool:
    names = ("checkpoint", "rank_0", "iteration_*", "*.safetensors")
    return is_there(output_dir) and any(True for name in names for _ in output_dir.glob(name))


def _weights(config: Config, report: Report) -> Path | None:
    if config.load_checkpoint:
        return existing(report, "load_checkpoint", config.load_checkpoint, flag="load_checkpoint")
    name = config.model.model_config.checkpoint_name_or_path
    if not name:
        return None
    if is_there(absolute(name)):
        return absolute(name)
    text = "a placeholder" if is_placeholder(name) else "no file here, and weights are never downloaded"
    report.notice(f"{_MODEL}.checkpoint_name_or_path: {name!r} is {text}; it is left out")
    return None


def _refuse_dropout(model: ModelConfig, report: Report) -> None:
    for name in ("emb_dropout_prob", "hidden_dropout_prob", "attention_dropout"):
        if getattr(model, name) > 0:
            report.error(f"{_MODEL}.{name}", f"is {getattr(model, name)}: dropout is not supported; set it to 0")


def _given_options(config: Config, report: Report) -> dict[str, Any]:
    """The fields of ModelOptions that the file sets by name."""
    model = config.model.model_config
    given = {field: getattr(model, key) for field, key in _PLAIN_FIELDS.items() if getattr(model, key) is not None}
    if model.add_bias_linear is not None:
        given = {"attention_output_bias": model.add_bias_linear, "mlp_bias": model.add_bias_linear} | given
    tie = _tied(model, report)
    if tie is not None:
        given["tie_embeddings"] = tie
    scaling = _rope_scaling(model, report)
    if scaling is not None:
        given["rope_scaling"] = scaling
    return given | _given_tokens(config, given)


def _given_tokens(config: Config, given: dict[str, Any]) -> dict[str, Any]:
    """Special tokens: model_config's, else generation_config's; a negative id means that there is none."""
    generation = config.generation_config
    tokens: dict[str, Any] = {}
    for name in ("bos_token_id", "pad_token_id"):
        value = given.get(name, getattr(generation, name))
        if value is not None:
            tokens[name] = value if value >= 0 else None
    eos = config.model.model_config.eos_token_id
    eos = generation.eos_token_id if eos is None else eos
    if eos is not None:
        tokens["eos_token_ids"] = tuple(token for token in ([eos] if isinstance(eos, int) else eos) if token >= 0)
    return tokens


def _tied(model: ModelConfig, report: Report) -> bool | None:
    tied, untied = model.tie_word_embeddings, model.untie_embeddings_and_output_weights
    if tied is not None and tied is untied:
        report.error(f"{_MODEL}.tie_word_embeddings", "contradicts untie_embeddings_and_output_weights")
    return tied if tied is not None else None if untied is None else not untied


def _options(config: Config, given: dict[str, Any], sequence: int | None, report: Report) -> ModelOptions:
    model = config.model.model_config
    family = _family(config)
    missing = [_PLAIN_FIELDS[name] for name in _REQUIRED if name not in given]
    if family is None or missing:
        what = "type or model_type" if family is None else ", ".join(missing)
        text = f"does not describe a model: {what} is missing; or give pretrained_model_dir, a Hugging Face folder"
        raise report.failure(_MODEL, f"{text}. Supported: {SUPPORTED}")
    values = (_LLAMA_TOKENS if is_legacy(config) else {}) | dict(family_defaults(family)) | given
    values.setdefault("num_kv_heads", values["num_heads"])
    values.setdefault("intermediate_size", derived_intermediate_size(model, values["hidden_size"]))
    values.setdefault("max_positions", sequence)
    if values["max_positions"] is None:
        raise report.failure(f"{_MODEL}.seq_length", "is not set, nor is max_position_embeddings")
    _check_heads(values, report)
    return ModelOptions(**values)


def _check_heads(values: dict[str, Any], report: Report) -> None:
    heads, kv_heads, hidden = values["num_heads"], values["num_kv_heads"], values["hidden_size"]
    if "head_dim" not in values:
        if hidden % heads:
            raise report.failure(f"{_MODEL}.hidden_size", f"is {hidden}, which num_heads {heads} does not divide")
        values["head_dim"] = hidden // heads
    if heads % kv_heads:
        raise report.failure(f"{_MODEL}.n_kv_heads", f"is {kv_heads}, which does not divide the {heads} heads")
    if values["head_dim"] % 2:
        size = values["head_dim"]
        raise report.failure(f"{_MODEL}.head_dim", f"is {size}; rotary positions need an even width of a head")


def derived_intermediate_size(model: ModelConfig, hidden_size: int) -> int:
    """Inner width of a feed-forward that the file does not give.

    Meta's rule for Llama, 2/3 of 4 · hidden stretched by ``ffn_dim_multiplier`` and rounded up, as MindFormers
    computes it: it adds 0.01 to the multiplier and stretches first, which gives Llama 2 70B its 28672.
    """
    width = 4 * hidden_size
    if model.ffn_dim_multiplier is not None:
        width = int((model.ffn_dim_multiplier + 0.01) * width)
    width = int(2 * width / 3)
    return -(-width // model.multiple_of) * model.multiple_of


def _rope_scaling(model: ModelConfig, report: Report) -> RopeScaling | None:
    factors = model.scaling_factor
    group = factors if isinstance(factors, RopeFactors) else None
    method = model.extend_method or (group.type if group else None)
    method = method or ("YARN" if model.position_embedding_type == "yarn" else None)
    if method in ("DYNAMIC_NTK", "dynamic"):
        raise report.failure(f"{_MODEL}.extend_method", f"is {method}: use PI, NTK, YARN or LLAMA3")
    if method in (None, "default"):
        if group is not None and group.factor is not None:
            text = "says how far positions are stretched; extend_method must say how: PI, NTK, YARN or LLAMA3"
            raise report.failure(f"{_MODEL}.scaling_factor", text)
        return None
    if method not in _ROPE_KINDS:
        raise report.failure(f"{_MODEL}.scaling_factor", f"has the type {method!r}; use linear, yarn or llama3")
    if group is None:
        number = factors if isinstance(factors, float) else model.rotary_scaling_factor
        return RopeScaling(_ROPE_KINDS[method], 1.0 if number is None else number)
    if group.factor is None:
        raise report.failure(f"{_MODEL}.scaling_factor", "lacks 'factor'")
    return RopeScaling(
        kind=_ROPE_KINDS[method],
        factor=group.factor,
        original_max_positions=group.original_max_position_embeddings,
        low_freq_factor=group.low_freq_factor,
        high_freq_factor=group.high_freq_factor,
        beta_fast=group.beta_fast,
        beta_slow=group.beta_slow,
        attention_factor=group.attention_factor,
        mscale=group.mscale,
        mscale_all_dim=group.mscale_all_dim,
    )


def _precision(config: Config) -> Precision:
    """Dtypes; where the file gives none, LlamaConfig means float16 and the newer models bfloat16 over float32."""
    model = config.model.model_config
    legacy = is_legacy(config)

    def named(name: str | None, default: DType) -> DType:
        return default if name is None else cast(DType, DTYPES[name])

    return Precision(
        parameters=named(model.param_init_type, "float16" if legacy else "float32"),
        compute=named(model.compute_dtype, "float16" if legacy else "bfloat16"),
        norm=named(model.layernorm_compute_type, "float32"),
        softmax=named(model.softmax_compute_type, "float32"),
        rotary=named(model.rotary_dtype, "float32"),
    )


def _lora(pet: PetConfig, report: Report) -> LoraOptions | None:
    path = f"{_MODEL}.pet_config"
    if pet.pet_type is None or pet.pet_type.lower() != "lora":
        named = "is not set" if pet.pet_type is None else f"is {pet.pet_type!r}"
        report.error(f"{path}.pet_type", f"{named}: lora is the only kind of adapter that is supported")
        return None
    try:
        re.compile(pet.target_modules)
    except re.error as error:
        report.error(f"{path}.target_modules", f"is no regular expression: {error}")
    return LoraOptions(
        pet.lora_rank,
        pet.lora_alpha,
        pet.lora_dropout,
        pet.target_modules,
        exclude=_texts(pet.exclude_layers),
        freeze=_texts(pet.freeze_include) or ("*",),
        spare=_texts(pet.freeze_exclude),
    )


def _texts(value: list[str] | str | None) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value or ())
