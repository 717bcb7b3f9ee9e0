"""Text to token ids and back, from the files that real model folders hold.

``load_tokenizer`` finds them (``tokenizer.json``, ``vocab.json`` + ``merges.txt``, SentencePiece
``tokenizer.model``, tiktoken files) and turns every form into one ``Tokenizer``.
"""

from runformer.tokenizer.load import load_tokenizer
from runformer.tokenizer.tokenizer import Tokenizer

__all__ = ["Tokenizer", "load_tokenizer"]
