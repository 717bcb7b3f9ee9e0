"""The sections about text: ``processor`` with its tokenizer, and ``generation_config``."""
# ruff: noqa: RUF009 - the calls wrap dataclasses.field, which the rule would allow

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runformer.config.schema import group, no_effect, refused, sets
from runformer.config.sections.reasons import ALWAYS, FOLDER_CODE, NAMES, OTHER_MODEL, VISION


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """``processor.tokenizer``: files and special tokens of a tokenizer."""

    type: str | None = sets("tokenizer.kind", "MindFormers' class of the tokenizer.")
    vocab_file: str | None = sets("tokenizer.vocab_file", "File of the vocabulary.")
    merges_file: str | None = sets("tokenizer.merges_file", "File of byte-pair merges.")
    tokenizer_file: str | None = sets("tokenizer.tokenizer_file", "File tokenizer.json.")
    bos_token: str | None = sets("tokenizer.special_tokens", "Token that begins a text.")
    eos_token: str | None = sets("tokenizer.special_tokens", "Token that ends a text.")
    pad_token: str | None = sets("tokenizer.special_tokens", "Token that fills short rows.")
    unk_token: str | None = sets("tokenizer.special_tokens", "Token for what is not known.")
    add_bos_token: bool | None = sets("tokenizer.add_bos_token", "Whether a text begins with bos_token.")
    add_eos_token: bool | None = sets("tokenizer.add_eos_token", "Whether a text ends with eos_token.")
    chat_template: str | None = sets("tokenizer.chat_template", "Jinja template of a chat.")
    model_max_length: int | None = no_effect(ALWAYS, "Longest text; the model decides.")
    max_length: int | None = no_effect(ALWAYS, "Longest text; the model decides.")
    padding_side: str | None = no_effect(ALWAYS, "Side that short rows are filled on.")
    trust_remote_code: bool | None = no_effect(FOLDER_CODE, "Whether code of the model's folder may run.")
    auto_register: str | None = no_effect(FOLDER_CODE, "File and class of the tokenizer.")
    mask_token: str | None = no_effect(OTHER_MODEL, "Token that hides another.")
    cls_token: str | None = no_effect(OTHER_MODEL, "Token of a whole text.")
    sep_token: str | None = no_effect(OTHER_MODEL, "Token between texts.")
    end_token: str | None = no_effect(OTHER_MODEL, "Token that ends a text.")
    gmask_token: str | None = no_effect(OTHER_MODEL, "Token of GLM.")
    do_lower_case: bool | None = no_effect(OTHER_MODEL, "Whether letters are made small.")
    do_basic_tokenize: bool | None = no_effect(OTHER_MODEL, "Whether words are split first.")
    tokenizer_type: str | None = no_effect(NAMES, "Label.")


@dataclass(frozen=True, slots=True)
class Processor:
    """``processor``: what turns text into tokens."""

    type: str | None = no_effect(ALWAYS, "MindFormers' class of the processor.")
    tokenizer: Tokenizer = group("Files and special tokens of a tokenizer.", Tokenizer)
    return_tensors: str | None = no_effect(ALWAYS, "Kind of tensors that are made.", accepted=("ms",))
    max_length: int | None = no_effect(ALWAYS, "Longest text; the model decides.")
    padding: str | bool | None = no_effect(ALWAYS, "How short texts are filled.")
    image_processor: Any = no_effect(VISION, "What prepares images.")
    audio_processor: Any = no_effect(VISION, "What prepares sound.")
    model_transform_template: Any = no_effect(VISION, "What prepares images for a model.")


@dataclass(frozen=True, slots=True)
class GenerationConfig:
    """``generation_config``: how tokens are picked; model.model_config's keys of the same name win."""

    max_length: int | None = sets("predict.generation.max_length", "Longest text, with its prompt.", least=1)
    max_new_tokens: int | None = sets("predict.generation.max_new_tokens", "Most tokens to add.", least=1)
    do_sample: bool | None = sets("predict.generation.do_sample", "Whether tokens are drawn at random.")
    temperature: float | None = sets("predict.generation.temperature", "Flatness of the distribution.", above=0)
    top_k: int | None = sets("predict.generation.top_k", "Tokens to draw from; 0: all.", least=0)
    top_p: float | None = sets("predict.generation.top_p", "Share of probability to draw from.", least=0, most=1)
    repetition_penalty: float | None = sets(
        "predict.generation.repetition_penalty", "Divides logits of tokens seen before.", above=0
    )
    bos_token_id: int | None = sets("model.options.bos_token_id", "Token that begins a text.")
    eos_token_id: int | list[int] | None = sets("model.options.eos_token_ids", "Tokens that end a text.")
    pad_token_id: int | None = sets("model.options.pad_token_id", "Token that fills short rows.")
    num_beams: int | None = refused("beam search is not supported", "Number of beams.", accepted=(1,))
    min_length: int | None = refused("a shortest length is not supported", "Shortest text.", accepted=(0,))
    min_new_tokens: int | None = refused("a shortest length is not supported", "Fewest tokens to add.", accepted=(0,))
    encoder_repetition_penalty: float | None = refused(
        "not supported", "Favours tokens of the prompt.", accepted=(1.0,)
    )
    use_past: bool | None = no_effect(ALWAYS, "Whether keys and values are cached.")
    transformers_version: str | None = no_effect(NAMES, "Label.")
