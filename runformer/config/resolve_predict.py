"""From ``input_data``, the generation keys and ``processor`` to the PredictTask and the TokenizerOptions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from runformer.config.paths import absolute, by_flag, is_placeholder, is_there
from runformer.config.problems import Report
from runformer.config.resolve_model import is_legacy
from runformer.config.sections import Config
from runformer.config.sections.predict import Tokenizer
from runformer.config.task import GenerationOptions, ModelTask, PredictTask, TokenizerOptions

_TOKENIZER = "processor.tokenizer"
_PICKING = ("max_new_tokens", "do_sample", "temperature", "top_k", "top_p", "repetition_penalty")
# What MindFormers' LlamaConfig means where the file says nothing.
_LLAMA_PICKING: dict[str, Any] = {
    "max_length": 1024,
    "do_sample": True,
    "temperature": 1.0,
    "top_k": 5,
    "top_p": 1.0,
    "repetition_penalty": 1.0,
}


def predict_task(config: Config, model: ModelTask, report: Report, *, chat: bool) -> PredictTask:
    """Prompts and how to answer them."""
    return PredictTask(
        inputs=_inputs(config, report),
        batch_size=config.predict_batch_size,
        chat=chat,
        generation=_generation(config, model, report),
        save_file=absolute(config.save_file),
    )


def _inputs(config: Config, report: Report) -> tuple[str, ...]:
    data = config.input_data
    if not data:
        report.fill_in("input_data", "is not set: --predict_data gives a prompt, prompts, or a .txt file of them")
        return ()
    if isinstance(data, list):
        return tuple(data)
    if data.endswith(".txt") and not is_there(absolute(data)) and not any(map(str.isspace, data)):
        report.fill_in("input_data", f"is {data!r}: there is no such file (a prompt file has one prompt a line)")
        return ()
    return (data.replace("\\n", "\n"),)


def _generation(config: Config, model: ModelTask, report: Report) -> GenerationOptions:
    own, common = config.model.model_config, config.generation_config
    values: dict[str, Any] = {}
    for name in _PICKING:
        value = getattr(own, name)
        values[name] = getattr(common, name) if value is None else value
    values["max_length"] = own.max_decode_length or own.max_length or common.max_length
    if is_legacy(config):
        values |= {name: default for name, default in _LLAMA_PICKING.items() if values[name] is None}
        longest = model.sequence_length
        if longest is not None and values["max_length"] > longest:
            if report.given("model.model_config.max_decode_length"):
                report.notice(f"model.model_config.max_decode_length: cut to seq_length, {longest}")
            values["max_length"] = longest
    return GenerationOptions(**values)


def tokenizer_options(config: Config, model: ModelTask, report: Report, *, predicting: bool) -> TokenizerOptions:
    """Where the tokenizer lies. Training needs none: files that are not there matter in prediction only."""
    return tokenizer_of(config.processor.tokenizer, _TOKENIZER, model.pretrained_dir, report, needed=predicting)


def tokenizer_of(
    tokenizer: Tokenizer, path: str, directory: Path | None, report: Report, *, needed: bool
) -> TokenizerOptions:
    """What a section ``path`` about a tokenizer says; files that are not there matter where it is ``needed``."""
    files = {
        name: _file(f"{path}.{name}", getattr(tokenizer, name), report, needed=needed)
        for name in ("tokenizer_file", "vocab_file", "merges_file")
    }
    special = {name: getattr(tokenizer, name) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}
    return TokenizerOptions(
        directory=directory,
        kind=tokenizer.type,
        special_tokens={name: token for name, token in special.items() if token is not None},
        add_bos_token=tokenizer.add_bos_token,
        add_eos_token=tokenizer.add_eos_token,
        chat_template=tokenizer.chat_template,
        **files,
    )


def _file(key: str, value: str | None, report: Report, *, needed: bool) -> Path | None:
    if not value:
        return None
    path = absolute(value)
    if is_there(path) and path.is_file():
        return path
    if not needed:
        return None
    if is_placeholder(value) and not report.planning:
        report.notice(f"{key}: {value!r} is a placeholder; the tokenizer beside the weights is taken")
        return None
    report.fill_in(key, f"is {value!r}: there is no such file{by_flag(key)}")
    return None
