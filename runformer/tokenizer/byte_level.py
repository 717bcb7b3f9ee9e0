"""Byte-level BPE vocabularies: ``vocab.json`` + ``merges.txt`` (GPT-2, Qwen2) and tiktoken files (Qwen, Llama 3).

A byte-level vocabulary writes every byte as one printable character, so that no text is unknown to it.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from runformer.errors import TokenizerError
from runformer.tokenizer.bpe import byte_alphabet, merges_by_rank, with_added_tokens
from runformer.tokenizer.files import read_json_object, read_text
from runformer.tokenizer.settings import MAX_IDS, TokenizerSettings, special_token

# How text is cut before merging, from the model families' own releases. They differ in how many digits
# stay together: Qwen one, Llama 3 up to three.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
END_OF_TEXT = "<|endoftext|>"

QWEN_TOKENS = (END_OF_TEXT, "<|im_start|>", "<|im_end|>")
# Llama 3.1's names; those of 3.0 differ only among the reserved ones.
LLAMA3_TOKENS = (
    *("<|begin_of_text|>", "<|end_of_text|>", "<|reserved_special_token_0|>", "<|reserved_special_token_1|>"),
    *("<|finetune_right_pad_id|>", "<|reserved_special_token_2|>", "<|start_header_id|>", "<|end_header_id|>"),
    *("<|eom_id|>", "<|eot_id|>", "<|python_tag|>"),
    *(f"<|reserved_special_token_{number}|>" for number in range(3, 248)),
)


@dataclass(frozen=True, slots=True)
class ByteLevelFamily:
    """What a byte-level vocabulary file leaves unsaid.

    ``pattern`` None: GPT-2's own, which ``tokenizers`` has built in. ``tokens`` stand behind the
    vocabulary unless the folder lists its added tokens; ``named`` are bos, eos … unless it names them.
    """

    pattern: str | None = None
    normalize: bool = False  # to Unicode NFC
    tokens: Sequence[AddedToken] = ()
    named: Mapping[str, str] = field(default_factory=dict)


GPT2 = ByteLevelFamily(named=dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT))
QWEN = ByteLevelFamily(
    pattern=SPLIT_PATTERN % "",
    normalize=True,
    tokens=tuple(map(special_token, QWEN_TOKENS)),
    named=dict.fromkeys(("eos_token", "unk_token", "pad_token"), END_OF_TEXT),
)
LLAMA3 = ByteLevelFamily(
    pattern=SPLIT_PATTERN % "{1,3}",
    tokens=tuple(map(special_token, LLAMA3_TOKENS)),
    named={"bos_token": LLAMA3_TOKENS[0], "eos_token": LLAMA3_TOKENS[1]},
)


def from_vocab_and_merges(
    vocab_file: Path, merges_file: Path, settings: TokenizerSettings, family: ByteLevelFamily
) -> tokenizers.Tokenizer:
    """The tokenizer of GPT-2's two files.

    Raises:
        TokenizerError: a file is damaged, or a merge uses or makes a piece that the vocabulary lacks.
    """
    vocabulary = _read_vocab(vocab_file)
    merges = _read_merges(merges_file, vocabulary, vocab_file)
    added = settings.added or _family_tokens(vocabulary, family)
    model = models.BPE(vocab=with_added_tokens(vocabulary, added, vocab_file), merges=merges)
    return _assemble(model, added, settings, family)


def from_tiktoken(file: Path, settings: TokenizerSettings, family: ByteLevelFamily) -> tokenizers.Tokenizer:
    """The tokenizer of a tiktoken file: a line for each token, its bytes in base64 and its rank.

    Raises:
        TokenizerError: the file is damaged.
    """
    alphabet = byte_alphabet()
    ranks = _read_ranks(file)
    vocabulary = {"".join(map(alphabet.__getitem__, token)): rank for token, rank in ranks.items()}
    merges = merges_by_rank(sorted(vocabulary, key=vocabulary.__getitem__), vocabulary)
    added = settings.added or _family_tokens(vocabulary, family)
    # tiktoken looks a whole word up before it merges; so does ignore_merges.
    model = models.BPE(vocab=with_added_tokens(vocabulary, added, file), merges=merges, ignore_merges=True)
    return _assemble(model, added, settings, family)


def _assemble(
    model: models.BPE, added: Mapping[int, AddedToken], settings: TokenizerSettings, family: ByteLevelFamily
) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(model)
    prefix_space = settings.flag("add_prefix_space", False)
    if family.normalize:
        tokenizer.normalizer = normalizers.NFC()
    if family.pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space)
    else:
        split = pre_tokenizers.Split(Regex(family.pattern), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=prefix_space, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(list(added.values()))
    return tokenizer


def _family_tokens(vocabulary: Mapping[str, int], family: ByteLevelFamily) -> dict[int, AddedToken]:
    """The family's tokens, those that the vocabulary lacks numbered on from its largest id."""
    following = max(vocabulary.values()) + 1
    added = {}
    for token in family.tokens:
        if (index := vocabulary.get(token.content)) is None:
            index, following = following, following + 1
        added[index] = token
    return added


def _read_vocab(file: Path) -> dict[str, int]:
    vocabulary = read_json_object(file)
    for token, index in vocabulary.items():
        if type(index) is not int or not 0 <= index < MAX_IDS:
            raise TokenizerError(f"{file}: the token {token!r} has {index!r} instead of an id")
    if len(set(vocabulary.values())) != len(vocabulary) or not vocabulary:
        raise TokenizerError(f"{file}: two tokens share an id, or there are none", hint="copy or download it again")
    return vocabulary


def _read_merges(file: Path, vocabulary: Mapping[str, int], vocab_file: Path) -> list[tuple[str, str]]:
    merges = []
    # Not splitlines(): it also cuts at characters that a piece may hold.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip() or line.startswith("#version"):
            continue
        parts = line.rstrip("\r").split(" ")
        if len(parts) != 2 or not all(parts):
            raise TokenizerError(f"{file}: line {number}: {line!r} is not two pieces with a space between")
        for piece in (*parts, "".join(parts)):
            if piece not in vocabulary:
                raise TokenizerError(
                    f"{file}: line {number}: the piece {piece!r} is not in the vocabulary {vocab_file}",
                    hint="take both files from the same model",
                )
        merges.append((parts[0], parts[1]))
    return merges


def _read_ranks(file: Path) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(file.read_bytes().split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise TokenizerError(
                f"{file}: line {number}: not a base64 token and its rank", hint="copy or download it again"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))) or any(bytes([byte]) not in ranks for byte in range(256)):
        raise TokenizerError(
            f"{file}: ranks are missing or stand twice, or a single byte has none", hint="copy or download it again"
        )
    return ranks
