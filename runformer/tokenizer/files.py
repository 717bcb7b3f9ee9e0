"""Which file holds the vocabulary: what the recipe names first, then what lies in the folders."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from runformer.config.task import TokenizerOptions
from runformer.errors import TokenizerError

Form = Literal["tokenizers", "vocab_merges", "sentencepiece", "tiktoken"]

TOKENIZER_JSON = "tokenizer.json"
VOCAB_JSON = "vocab.json"
MERGES_TXT = "merges.txt"
TOKENIZER_MODEL = "tokenizer.model"
LOOKED_FOR = f"{TOKENIZER_JSON}, {VOCAB_JSON} with {MERGES_TXT}, {TOKENIZER_MODEL}, *.tiktoken"

TIKTOKEN_LINE = re.compile(rb"[A-Za-z0-9+/]+={0,2} \d+\r?$")


@dataclass(frozen=True, slots=True)
class VocabularyFile:
    """A vocabulary on disk. ``merges`` is set with the form ``vocab_merges`` only."""

    form: Form
    path: Path
    merges: Path | None = None


def find_vocabulary(folder: Path | None, options: TokenizerOptions) -> VocabularyFile:
    """The file to load: one named in ``options``, else the first found in ``options.directory``, then ``folder``.

    Raises:
        TokenizerError: a named file or folder is missing, or none of the folders holds a vocabulary.
    """
    named = options.tokenizer_file or options.vocab_file
    if named is not None:
        return _named_vocabulary(named, options.merges_file)
    folders = [each for each in (options.directory, folder) if each is not None]
    if not folders:
        raise TokenizerError(
            "no tokenizer: neither a file nor a folder is given",
            hint="set processor.tokenizer.vocab_file, or pretrained_model_dir to a Hugging Face folder",
        )
    for each in folders:
        if not each.is_dir():
            raise TokenizerError(f"{each}: no such folder of a tokenizer", hint="check the path in the recipe")
        for found in _vocabularies_in(each):
            return found
    raise TokenizerError(
        f"no tokenizer in {' or '.join(str(each) for each in folders)}; looked for {LOOKED_FOR}",
        hint="copy the model's tokenizer files there, or set processor.tokenizer.vocab_file",
    )


def _vocabularies_in(folder: Path) -> Iterator[VocabularyFile]:
    if (path := folder / TOKENIZER_JSON).is_file():
        yield VocabularyFile("tokenizers", path)
    if (path := folder / VOCAB_JSON).is_file() and (merges := folder / MERGES_TXT).is_file():
        yield VocabularyFile("vocab_merges", path, merges)
    if (path := folder / TOKENIZER_MODEL).is_file():
        yield VocabularyFile(_model_form(path), path)
    for path in sorted(folder.glob("*.tiktoken")):
        yield VocabularyFile("tiktoken", path)


def _named_vocabulary(path: Path, merges: Path | None) -> VocabularyFile:
    # Recipes put any form under ``vocab_file``, so the content decides, not the key.
    if not path.is_file():
        raise TokenizerError(
            f"{path}: no such tokenizer file", hint="check tokenizer_file and vocab_file under processor.tokenizer"
        )
    if path.suffix != ".json":
        return VocabularyFile(_model_form(path), path)
    if "model" in read_json_object(path):
        return VocabularyFile("tokenizers", path)
    merges = merges or path.with_name(MERGES_TXT)
    if not merges.is_file():
        raise TokenizerError(
            f"{merges}: no such file; the vocabulary {path} needs its merges",
            hint="set processor.tokenizer.merges_file",
        )
    return VocabularyFile("vocab_merges", path, merges)


def _model_form(path: Path) -> Form:
    """Llama 3 calls its tiktoken file ``tokenizer.model``, the name of Llama 2's SentencePiece file."""
    with path.open("rb") as file:
        first_line = file.readline(4096).rstrip(b"\n")
    return "tiktoken" if path.suffix == ".tiktoken" or TIKTOKEN_LINE.match(first_line) else "sentencepiece"


def read_text(path: Path) -> str:
    """The text of a UTF-8 file.

    Raises:
        TokenizerError: the file cannot be read or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TokenizerError(f"{path}: cannot be read: {error}", hint="copy or download it again") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        TokenizerError: the file cannot be read, is not JSON, or holds something else than an object.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
        if "\\ud" in text.lower():  # half of a surrogate pair, which JSON can spell, is no text
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path}: damaged JSON: {error}", hint="copy or download it again") from error
    if not isinstance(value, dict):
        raise TokenizerError(f"{path}: holds {type(value).__name__} instead of an object of names and values")
    return value
