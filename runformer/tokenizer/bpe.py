"""Byte-pair encoding shared by the vocabulary forms: merges from piece order, and the GPT-2 byte alphabet."""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping
from pathlib import Path

from tokenizers import AddedToken

from runformer.errors import TokenizerError


def merges_by_rank(pieces: Iterable[str], vocabulary: Container[str]) -> list[tuple[str, str]]:
    """The merges of a BPE that ranks pieces, not pairs (SentencePiece, tiktoken).

    ``pieces`` come in the order in which they are to be merged. Each is made from every split into
    two pieces of ``vocabulary``: these encoders join any two neighbours whose concatenation is known.
    """
    return [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]


def byte_alphabet() -> str:
    """The character that stands for each byte 0 … 255 in a byte-level vocabulary (GPT-2).

    Printable Latin-1 characters stand for themselves, the other 68 bytes for U+0100, U+0101, …
    """
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    substitutes = iter(range(0x100, 0x200))
    return "".join(chr(byte if byte in printable else next(substitutes)) for byte in range(256))


def with_added_tokens(vocabulary: Mapping[str, int], added: Mapping[int, AddedToken], source: Path) -> dict[str, int]:
    """``vocabulary`` with the added tokens at the ids they are given, which may leave gaps.

    Raises:
        TokenizerError: an added token has an id that the vocabulary of ``source`` gives to another, or two ids.
    """
    taken = {index: content for content, index in vocabulary.items()}
    extended = dict(vocabulary)
    for index, token in added.items():
        if taken.setdefault(index, token.content) != token.content or extended.get(token.content, index) != index:
            raise TokenizerError(
                f"{source}: the added token {token.content!r} has id {index}, which the vocabulary gives to "
                f"{taken[index]!r}",
                hint="tokenizer_config.json belongs to another vocabulary",
            )
        extended[token.content] = index
    return extended
