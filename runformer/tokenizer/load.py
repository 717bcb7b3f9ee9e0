"""From files and options to a ``Tokenizer``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, processors

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError
from runformer.tokenizer.byte_level import (
    GPT2,
    LLAMA3,
    QWEN,
    from_tiktoken,
    from_vocab_and_merges,
)
from runformer.tokenizer.files import VocabularyFile, find_vocabulary, read_json_object, read_text
from runformer.tokenizer.sentencepiece import from_sentencepiece, read_model
from runformer.tokenizer.settings import TokenizerSettings, read_settings, special_token
from runformer.tokenizer.tokenizer import Tokenizer

BESIDE_THE_WEIGHTS = TokenizerOptions()

LLAMA_NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """A loaded vocabulary, and what its form says where folder and recipe are silent.

    ``adds`` tells whether ``bos_token`` and ``eos_token`` are put around a text; None: the backend itself knows,
    since a ``tokenizer.json`` holds the rule.
    """

    backend: tokenizers.Tokenizer
    named: Mapping[str, str]
    adds: Mapping[str, bool] | None = None


def load_tokenizer(folder: Path | None, options: TokenizerOptions = BESIDE_THE_WEIGHTS) -> Tokenizer:
    """The tokenizer that ``options`` names, else the one in ``options.directory``, else the one in ``folder``.

    Special tokens, whether bos and eos are added, and the chat template come from ``options``, else from the
    Hugging Face files beside the vocabulary, else from the vocabulary's form: SentencePiece adds bos, the
    others do not.

    Raises:
        TokenizerError: no tokenizer is found, a file is damaged or does not fit another, or a special token
            is not in the vocabulary.
    """
    file = find_vocabulary(folder, options)
    settings = read_settings(file.path.parent)
    vocabulary = _load_vocabulary(file, settings, options.kind)
    _check_added_tokens(vocabulary.backend, settings, file.path)
    special = _special_tokens(vocabulary, settings, options, file.path)
    vocabulary.backend.add_special_tokens([*special.values(), *_known(settings.extra, vocabulary.backend)])
    _set_bos_and_eos(vocabulary, special, options)
    contents = {name: token.content for name, token in special.items()}
    return Tokenizer(vocabulary.backend, contents, options.chat_template or settings.chat_template, file.path)


def _load_vocabulary(file: VocabularyFile, settings: TokenizerSettings, kind: str | None) -> Vocabulary:
    kind = str(kind or settings.config.get("tokenizer_class") or settings.model_type).lower()
    is_qwen = "qwen" in kind
    match file.form:
        case "tokenizers":
            return Vocabulary(_load_tokenizer_json(file.path, settings), _named_by_kind(kind))
        case "sentencepiece":
            model = read_model(file.path)
            return Vocabulary(from_sentencepiece(file.path, model, settings), model.named, _adds(settings, bos=True))
        case "tiktoken":
            family = QWEN if is_qwen or "qwen" in file.path.name.lower() else LLAMA3
            return Vocabulary(from_tiktoken(file.path, settings, family), family.named, _adds(settings, bos=False))
        case "vocab_merges":
            family = QWEN if is_qwen else GPT2
            merges = file.merges or file.path
            backend = from_vocab_and_merges(file.path, merges, settings, family)
            return Vocabulary(backend, family.named, _adds(settings, bos=False))


def _adds(settings: TokenizerSettings, *, bos: bool) -> dict[str, bool]:
    return {"bos_token": settings.flag("add_bos_token", bos), "eos_token": settings.flag("add_eos_token", False)}


def _named_by_kind(kind: str) -> Mapping[str, str]:
    """The special tokens of a tokenizer class that a ``tokenizer.json`` alone does not name."""
    if "qwen" in kind:
        return QWEN.named
    if "gpt2" in kind:
        return GPT2.named
    if "llama3" in kind:
        return LLAMA3.named
    return LLAMA_NAMED if "llama" in kind else {}


def _load_tokenizer_json(file: Path, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    try:
        backend = tokenizers.Tokenizer.from_str(read_text(file))
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing narrower
        read_json_object(file)  # where it is not JSON at all, the line and column say more
        raise TokenizerError(
            f"{file}: not a tokenizer.json that the tokenizers library can read: {error}",
            hint="copy or download it again; if the file is sound, upgrade tokenizers",
        ) from error
    # Cutting and padding are the caller's to decide.
    backend.no_truncation()
    backend.no_padding()
    backend.add_tokens(list(settings.added.values()))
    return backend


def _check_added_tokens(backend: tokenizers.Tokenizer, settings: TokenizerSettings, file: Path) -> None:
    for index, token in settings.added.items():
        if (actual := backend.token_to_id(token.content)) != index:
            raise TokenizerError(
                f"{file.parent}: the added token {token.content!r} has id {index}, but {actual} in {file.name}",
                hint="tokenizer_config.json belongs to another vocabulary",
            )


def _special_tokens(
    vocabulary: Vocabulary, settings: TokenizerSettings, options: TokenizerOptions, file: Path
) -> dict[str, AddedToken]:
    """Every named special token that the vocabulary has; bos, eos or pad named but absent is an error."""
    usual = {name: special_token(token) for name, token in vocabulary.named.items()}
    named = {name: special_token(token) for name, token in options.special_tokens.items()}
    chosen: dict[str, AddedToken | None] = {
        **{name: token for name, token in usual.items() if vocabulary.backend.token_to_id(token.content) is not None},
        **settings.named,
        **named,
    }
    special = {}
    for name, token in chosen.items():
        if token is None:
            continue
        if vocabulary.backend.token_to_id(token.content) is not None:
            special[name] = token
        # Recipes name an unk_token by habit; a byte-level vocabulary has none and needs none.
        elif name != "unk_token":
            source = "processor.tokenizer" if name in named else f"{file.parent}"
            raise TokenizerError(
                f"{source}: the {name} {token.content!r} is not in the vocabulary {file}",
                hint="name a token that the vocabulary has, or use the vocabulary that belongs to the model",
            )
    return special


def _known(tokens: tuple[AddedToken, ...], backend: tokenizers.Tokenizer) -> list[AddedToken]:
    return [token for token in tokens if backend.token_to_id(token.content) is not None]


def _set_bos_and_eos(vocabulary: Vocabulary, special: Mapping[str, AddedToken], options: TokenizerOptions) -> None:
    """Let the backend put bos before and eos behind a text, where the recipe, else the folder asks for it."""
    asked = {"bos_token": options.add_bos_token, "eos_token": options.add_eos_token}
    if vocabulary.adds is None and set(asked.values()) == {None}:
        return
    backend = vocabulary.backend
    around_nothing = backend.encode("").ids
    surround: dict[str, list[str]] = {}
    for name, wish in asked.items():
        surround[name] = []
        if (token := special.get(name)) is None:
            if wish:
                raise TokenizerError(f"add_{name} is true, but there is no {name}", hint=f"name the {name} as well")
            continue
        index = backend.token_to_id(token.content)
        if by_itself := index in around_nothing:
            around_nothing.remove(index)  # bos and eos may be one token: it counts once
        default = by_itself if vocabulary.adds is None else vocabulary.adds[name]
        if default if wish is None else wish:
            surround[name] = [token.content]
    backend.post_processor = _template(surround["bos_token"], surround["eos_token"], backend)


def _template(bos: list[str], eos: list[str], backend: tokenizers.Tokenizer) -> processors.TemplateProcessing:
    ids = {token: backend.token_to_id(token) for token in (*bos, *eos)}
    return processors.TemplateProcessing(single=[*bos, "$A", *eos], special_tokens=list(ids.items()))
