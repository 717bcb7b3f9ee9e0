"""SentencePiece models (``tokenizer.model``, Llama 2): the file read, and its rules written for ``tokenizers``.

The file is one protocol buffer (sentencepiece_model.proto of google/sentencepiece). The few fields
that matter are read here, so neither ``sentencepiece`` nor ``protobuf`` has to be installed.
Encoding follows ``transformers.LlamaTokenizer``; for text that does not begin with a space, SentencePiece itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from runformer.errors import TokenizerError
from runformer.tokenizer.bpe import merges_by_rank, with_added_tokens
from runformer.tokenizer.settings import TokenizerSettings

SPACE = "▁"  # U+2581, which stands for a space in pieces
UNIGRAM, BPE = 1, 2  # TrainerSpec.ModelType
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4  # ModelProto.SentencePiece.Type
Field = int | bytes


@dataclass(frozen=True, slots=True)
class Piece:
    """One entry of the vocabulary; its place in the list is its id."""

    text: str
    score: float
    kind: int


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """The parts of a SentencePiece model that encoding needs. Absent special ids are -1."""

    pieces: tuple[Piece, ...]
    model_type: int
    byte_fallback: bool
    special_ids: dict[str, int]
    character_map: bytes
    add_dummy_prefix: bool
    remove_extra_whitespaces: bool

    @property
    def named(self) -> dict[str, str]:
        """``bos_token``, ``eos_token``, ``pad_token`` and ``unk_token`` as far as the model has them."""
        known = range(len(self.pieces))
        return {name: self.pieces[index].text for name, index in self.special_ids.items() if index in known}


def read_model(file: Path) -> SentencePieceModel:
    """Read a SentencePiece model.

    Raises:
        TokenizerError: the file is damaged, or of a kind that no language model here uses (word, char).
    """
    try:
        model = _parse_model(file.read_bytes())
    except (ValueError, IndexError, KeyError, TypeError, struct.error) as error:
        raise TokenizerError(
            f"{file}: neither a whole SentencePiece model nor a tiktoken file", hint="copy or download it again"
        ) from error
    if model.model_type not in (UNIGRAM, BPE):
        raise TokenizerError(f"{file}: a SentencePiece model of words or characters; only BPE and unigram are known")
    return model


def from_sentencepiece(file: Path, model: SentencePieceModel, settings: TokenizerSettings) -> tokenizers.Tokenizer:
    """The tokenizer of a model that ``read_model`` gave.

    ``tokenizer_config.json`` may turn the space before the first word off (``add_prefix_space``) or put
    one after every special token too (``legacy``).

    Raises:
        TokenizerError: the model's tables do not fit together, or the added tokens do not fit the model.
    """
    prefix_space = settings.flag("add_prefix_space", model.add_dummy_prefix)
    try:
        tokenizer = tokenizers.Tokenizer(_model(file, model, settings))
        tokenizer.normalizer = _normalizer(model, prefix_space)
    except TokenizerError:
        raise
    except Exception as error:  # the library raises nothing narrower
        raise TokenizerError(f"{file}: damaged SentencePiece model: {error}") from error
    scheme = ("always" if settings.flag("legacy", False) else "first") if prefix_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    tokenizer.decoder = _decoder(prefix_space)
    tokenizer.add_tokens([*settings.added.values(), *_added_pieces(model)])
    return tokenizer


def _model(file: Path, model: SentencePieceModel, settings: TokenizerSettings) -> models.Model:
    unk_id = model.special_ids["unk_token"]
    if model.model_type == UNIGRAM:
        scored = [(piece.text, piece.score) for piece in model.pieces]
        return models.Unigram(scored, unk_id, model.byte_fallback)
    vocabulary = {piece.text: index for index, piece in enumerate(model.pieces)}
    # The best score is merged first; equal scores go by id, which is what `tokenizers` can express.
    normal = {piece.text: piece.score for piece in model.pieces if piece.kind == NORMAL}
    ordered = sorted(normal, key=lambda text: (-normal[text], vocabulary[text]))
    return models.BPE(
        vocab=with_added_tokens(vocabulary, settings.added, file),
        merges=merges_by_rank(ordered, normal.keys()),
        unk_token=model.named.get("unk_token"),
        fuse_unk=True,
        byte_fallback=model.byte_fallback,
    )


def _normalizer(model: SentencePieceModel, prefix_space: bool) -> normalizers.Normalizer | None:
    steps: list[normalizers.Normalizer] = []
    if model.character_map:
        steps.append(normalizers.Precompiled(model.character_map))
    if model.remove_extra_whitespaces:
        # A space at the start is as good as the prefix, which Metaspace puts only where there is none yet;
        # were it stripped, the text would no longer begin at its first character and get no prefix.
        steps.append(normalizers.Replace(Regex(r" +\z" if prefix_space else r"\A +| +\z"), ""))
        steps.append(normalizers.Replace(Regex(" {2,}"), " "))
    return normalizers.Sequence(steps) if steps else None


def _decoder(prefix_space: bool) -> decoders.Decoder:
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix_space:
        steps.append(decoders.Strip(content=" ", left=1))
    return decoders.Sequence(steps)


def _added_pieces(model: SentencePieceModel) -> Iterator[AddedToken]:
    """Control pieces are special; user-defined ones are text that is never split."""
    for piece in model.pieces:
        if piece.kind in (CONTROL, USER_DEFINED):
            yield AddedToken(piece.text, special=piece.kind == CONTROL, normalized=False)


def _parse_model(data: bytes) -> SentencePieceModel:
    pieces: list[Piece] = []
    parts: dict[int, dict[int, Field]] = {}
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_parse_piece(_as_bytes(value)))
        elif number in (2, 3):
            parts[number] = dict(_fields(_as_bytes(value)))
    trainer, normalizer = parts[2], parts[3]
    if not pieces:
        raise ValueError("no pieces")
    return SentencePieceModel(
        pieces=tuple(pieces),
        model_type=_as_int(trainer.get(3, UNIGRAM)),
        byte_fallback=bool(trainer.get(35, 0)),
        special_ids={
            "unk_token": _as_int(trainer.get(40, 0)),
            "bos_token": _as_int(trainer.get(41, 1)),
            "eos_token": _as_int(trainer.get(42, 2)),
            "pad_token": _as_int(trainer.get(43, -1)),
        },
        character_map=_as_bytes(normalizer.get(2, b"")),
        add_dummy_prefix=bool(normalizer.get(3, 1)),
        remove_extra_whitespaces=bool(normalizer.get(4, 1)),
    )


def _parse_piece(data: bytes) -> Piece:
    fields = dict(_fields(data))
    (score,) = struct.unpack("<f", _as_bytes(fields.get(2, bytes(4))))
    return Piece(_as_bytes(fields[1]).decode("utf-8"), score, _as_int(fields.get(3, NORMAL)))


def _as_bytes(value: Field) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number stands where bytes belong")
    return value


def _as_int(value: Field) -> int:
    """A 32-bit field; negative numbers are written as 64-bit two's complement."""
    if isinstance(value, bytes):
        raise ValueError("bytes stand where a number belongs")
    return value - (1 << 64) if value >= 1 << 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Field]]:
    """The fields of one protocol buffer message, by number (protobuf.dev, "Encoding")."""
    position = 0
    while position < len(data):
        key, position = _varint(data, position)
        wire_type = key & 7
        if wire_type == 0:
            value, position = _varint(data, position)
            yield key >> 3, value
            continue
        if wire_type == 2:
            size, position = _varint(data, position)
        else:
            size = {1: 8, 5: 4}[wire_type]
        if position + size > len(data):
            raise ValueError("the message is cut off")
        yield key >> 3, data[position : position + size]
        position += size


def _varint(data: bytes, position: int) -> tuple[int, int]:
    """The number at ``position``, in groups of 7 bits from the lowest, and the position behind it."""
    value = shift = 0
    while True:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
