"""Other people's task files, and what has to be there for them to load."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

SHARED = Path(__file__).resolve().parents[2].parent / "shared"
FILES = sorted(str(path.relative_to(SHARED)) for path in SHARED.rglob("*.yaml"))
STAND_INS = [
    "--use_parallel=False",
    "--train_dataset_dir=rows.mindrecord",
    "--load_checkpoint=weights",
    "--predict_data=hello",
    "--processor.tokenizer.vocab_file=vocab.json",
    "--processor.tokenizer.merges_file=merges.txt",
]


# For files with a Megatron dataset.
MEGATRON_STAND_IN = "--train_dataset.data_loader.config.data_path.1=text_document"


def make_stand_ins(folder: Path) -> None:
    """Empty files under the names that the flags of ``STAND_INS`` give."""
    for name in (
        "rows.mindrecord",
        "text_document.idx",
        "text_document.bin",
        "vocab.json",
        "merges.txt",
        "tokenizer/tokenizer.json",
        "weights/x",
        "hf/config.json",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()


def paths_in(tree: Any, prefix: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value of a tree: keys of mappings and indices of lists."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*prefix, key)
        yield from paths_in(value, (*prefix, key))
