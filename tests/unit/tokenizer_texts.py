"""Text for the tokenizer tests: what vocabularies are trained on, what is hard to encode, and anything at all."""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CHINESE = [
    "大语言模型从大量文本中学习词语之间的关系。",
    "分布式训练把一个模型放到许多设备上，每个设备只保存一部分参数。",
    "学习率先升后降，损失随着训练步数慢慢变小。",
    "请用一句话回答：法国的首都是哪里？",
    "检查点写完之后才改名，所以断电也不会丢失已经保存的数据。",
]
CORPUS = inspect.getsource(argparse).splitlines()[:700] + CHINESE * 20

HARD = [
    "",
    " ",
    "   ",
    "\n",
    "Hello, world! 你好，世界",
    "  two spaces before, and after  ",
    "tabs\t\there\r\nand\n\n\nnew lines",
    "it's we'll THEY'RE don’t",
    "12345 3.14159 1,000,000 x2y3 ⅷ ²",
    "emoji 🙂👩‍👩‍👧‍👦🇫🇷 and e\u0301 é Å ﬁ ａ",
    "def f(x):\n    return x ** 2  # square\n",
    "{'json': [1, 2, {\"a\": null}]}",
    "<|endoftext|>at the start, in the <|im_start|>middle <|im_end|>, at the end<|endoftext|>",
    "</s> <s>text</s>text <unk> <pad>",
    "Ünïcödé ñ ß Ω я 日本語 한국어 العربية עברית ไทย",
    "\u00a0no-break\u2003em\u200bzero\ufeff",
    "▁already ▁▁ marked",
    "\x00\x01\x7f control",
    "aaaaaaaaaaaaaaaaaaaaaaaaa abababababab",
]

ANY_TEXT = st.one_of(
    st.text(max_size=40),
    st.text(alphabet="ab \n\t'’.12é你🙂▁<|>", max_size=30),
    st.lists(st.sampled_from([*HARD[4:], *CHINESE]), max_size=3).map(" ".join),
)


def real_lines(shared_dir: Path) -> list[str]:
    """A few hundred lines of English and Chinese that people wrote."""
    english = (shared_dir / "data" / "wikitext2_valid.txt").read_text(encoding="utf-8").splitlines(keepends=True)
    records: list[dict[str, str]] = json.loads((shared_dir / "data" / "alpaca_zh.json").read_text(encoding="utf-8"))
    chinese = itertools.chain.from_iterable((record["instruction"], record["output"]) for record in records[:100])
    return [*english[:200], *chinese]


def train_byte_level(pattern: str | None = None, normalize: bool = False, size: int = 600) -> Tokenizer:
    """A byte-level BPE as GPT-2's (``pattern`` None) or Qwen2's, trained on ``CORPUS``."""
    tokenizer = Tokenizer(models.BPE())
    if normalize:
        tokenizer.normalizer = normalizers.NFC()
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def add_special(tokenizer: Tokenizer, *contents: str) -> None:
    tokenizer.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in contents])


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")


def assert_same(ours: Any, oracle: Any, text: str, *, add_special_tokens: bool = True) -> None:
    """Both give the same ids for ``text``, and the same text for those ids."""
    expected = list(oracle.encode(text, add_special_tokens=add_special_tokens))
    assert ours.encode(text, add_special_tokens=add_special_tokens) == expected, repr(text)
    for skip in (False, True):
        assert ours.decode(expected, skip_special_tokens=skip) == oracle.decode(expected, skip_special_tokens=skip)
