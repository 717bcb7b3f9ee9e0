"""What lies beside a vocabulary: special tokens, added tokens, the chat template.

A Hugging Face folder spreads them over ``tokenizer_config.json``, ``special_tokens_map.json``,
``added_tokens.json`` and ``chat_template.jinja``; newer files win, as in ``transformers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken

from runformer.errors import TokenizerError
from runformer.tokenizer.files import read_json_object, read_text

TOKENIZER_CONFIG = "tokenizer_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"
ADDED_TOKENS = "added_tokens.json"
CHAT_TEMPLATE = "chat_template.jinja"
MODEL_CONFIG = "config.json"

MAX_IDS = 1 << 32  # `tokenizers` keeps ids in 32 bits
NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
EXTRA_TOKENS = ("additional_special_tokens", "extra_special_tokens")


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """The small files of one tokenizer folder, read.

    ``named`` maps ``bos_token`` … to a token, or to None where the folder says that there is none;
    ``extra`` are further special tokens, ``added`` the tokens beyond the vocabulary by id, and ``config``
    is ``tokenizer_config.json`` as it stands.
    """

    config: Mapping[str, Any] = field(default_factory=dict)
    named: Mapping[str, AddedToken | None] = field(default_factory=dict)
    extra: tuple[AddedToken, ...] = ()
    added: Mapping[int, AddedToken] = field(default_factory=dict)
    chat_template: str | None = None
    model_type: str | None = None

    def flag(self, key: str, default: bool) -> bool:
        """A yes or no of ``tokenizer_config.json``; absent or null: ``default``."""
        value = self.config.get(key)
        return default if value is None else bool(value)


def read_settings(folder: Path) -> TokenizerSettings:
    """Read the settings in ``folder``; files that are not there count as empty.

    Raises:
        TokenizerError: one of the files is damaged.
    """
    config = _object_or_empty(folder / TOKENIZER_CONFIG)
    merged = dict(config)
    # A config that lists its added tokens was written whole; before that, the map held the latest word.
    if "added_tokens_decoder" not in config:
        merged.update(_object_or_empty(folder / SPECIAL_TOKENS_MAP))
    return TokenizerSettings(
        config=config,
        named=_named_tokens(merged, folder),
        extra=tuple(_extra_tokens(merged, folder)),
        added=_added_tokens(config, folder),
        chat_template=_chat_template(config, folder),
        model_type=_object_or_empty(folder / MODEL_CONFIG).get("model_type"),
    )


def special_token(content: str) -> AddedToken:
    """A token that is matched literally in text and left out of decoded text."""
    try:
        return AddedToken(content, special=True, normalized=False)
    except UnicodeEncodeError as error:
        raise TokenizerError(f"the special token {content!r} is not valid Unicode text") from error


def _object_or_empty(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.is_file() else {}


def _named_tokens(values: Mapping[str, Any], folder: Path) -> dict[str, AddedToken | None]:
    return {
        name: None if values[name] is None else _special(values[name], name, folder)
        for name in NAMED_TOKENS
        if name in values
    }


def _extra_tokens(values: Mapping[str, Any], folder: Path) -> list[AddedToken]:
    tokens = []
    for key in EXTRA_TOKENS:
        listed = values.get(key) or []
        if not isinstance(listed, list | dict):
            raise TokenizerError(f"{folder}: {key}: {listed!r} is no list of tokens")
        for token in listed.values() if isinstance(listed, dict) else listed:
            tokens.append(_special(token, key, folder))
    return tokens


def _special(value: Any, key: str, folder: Path) -> AddedToken:
    token = special_token(value) if isinstance(value, str) else _from_dict(value, key, folder)
    token.special = True
    return token


def _added_tokens(config: Mapping[str, Any], folder: Path) -> dict[int, AddedToken]:
    source, listed = TOKENIZER_CONFIG, config.get("added_tokens_decoder")
    if listed is None:
        source, contents = ADDED_TOKENS, _object_or_empty(folder / ADDED_TOKENS)
        listed = {index: {"content": content} for content, index in contents.items()}
    try:
        tokens = {int(index): _from_dict(token, "added_tokens_decoder", folder) for index, token in listed.items()}
        if any(not 0 <= index < MAX_IDS for index in tokens):
            raise ValueError(f"an id is not within 0 … {MAX_IDS - 1}")
    except (AttributeError, TypeError, ValueError) as error:
        raise TokenizerError(f"{folder / source}: added tokens are not ids and tokens: {error}") from error
    return dict(sorted(tokens.items()))


def _from_dict(value: Any, key: str, folder: Path) -> AddedToken:
    """An AddedToken from its JSON form, for example ``{"content": "</s>", "lstrip": false, "special": true}``."""
    if not isinstance(value, dict) or not isinstance(value.get("content"), str):
        raise TokenizerError(
            f"{folder}: {key}: {value!r} is no token", hint="a token is a string, or an object with its content"
        )
    flags = {flag: bool(value[flag]) for flag in ("single_word", "lstrip", "rstrip", "normalized") if flag in value}
    return AddedToken(value["content"], special=bool(value.get("special", False)), **flags)


def _chat_template(config: Mapping[str, Any], folder: Path) -> str | None:
    if (path := folder / CHAT_TEMPLATE).is_file():
        return read_text(path)
    template = config.get("chat_template")
    if isinstance(template, list):  # several templates by name, as [{"name": …, "template": …}, …]
        template = {each.get("name"): each.get("template") for each in template if isinstance(each, dict)}
    if isinstance(template, dict):
        template = template.get("default")
    if template is None or isinstance(template, str):
        return template
    raise TokenizerError(f"{folder / TOKENIZER_CONFIG}: chat_template is not text")
