"""Writes the numbers of Megatron-core and MindFormers that our samples are compared with: see README.md."""

from __future__ import annotations

import hashlib
import importlib
import json
import logging
import os
import sys
import tempfile
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve().parent
TOKENIZER = types.SimpleNamespace(unique_identifiers={"class": "Stub", "path": "x"}, eod=3, pad=-1, vocab_size=60000)

# name of a dataset: lengths of its documents
DATASETS: dict[str, list[int]] = {
    "text": [5, 1, 9, 17, 2, 2, 30, 4, 11, 8, 3, 6, 25, 1, 1, 7],
    "empty_ones": [0, 6, 0, 0, 13, 8, 0, 21, 5, 0],
    "one": [40],
    "many": [3 + number * 37 % 90 for number in range(400)],
}
# dataset, sequence length, seed, number of samples, split, part, extra token, drop the last partial sample
SINGLE: list[list[Any]] = [
    ["text", 8, 1234, 5, "1, 0, 0", "train", True, True],
    ["text", 8, 1234, None, "1, 0, 0", "train", True, True],
    ["text", 8, 1234, 16, "1, 0, 0", "train", True, True],
    ["text", 8, 1234, 17, "1, 0, 0", "train", True, True],
    ["text", 8, 1234, 28, "1, 0, 0", "train", True, True],
    ["text", 8, 1234, 33, "1, 0, 0", "train", True, True],
    ["text", 7, 42, 100, "1, 0, 0", "train", False, True],
    ["text", 11, 0, 12, "1, 0, 0", "train", False, True],
    ["text", 8, 7, 12, "969, 30, 1", "train", True, True],
    ["text", 8, 7, 12, "6,3,1", "train", True, True],
    ["text", 8, 7, 12, "6,3,1", "valid", True, True],
    ["text", 8, 7, 12, "6,3,1", "valid", True, False],
    ["text", 8, 7, None, "6,3,1", "valid", False, False],
    ["text", 8, 7, 30, "6,3,1", "test", True, True],
    ["empty_ones", 6, 5, 9, "100", "train", True, True],
    ["empty_ones", 6, 5, 25, "100", "train", False, True],
    ["empty_ones", 5, 9, 31, "0, 1", "valid", True, False],
    ["empty_ones", 5, 9, None, "0, 1", "valid", False, False],
    ["one", 13, 1, 3, "1,0,0", "train", True, True],
    ["one", 13, 1, 10, "1,0,0", "train", True, True],
    ["one", 100, 1, 4, "1,0,0", "train", True, True],
    ["many", 128, 4321, 500, "98,2,0", "train", True, True],
    ["many", 128, 4321, 20000, "98,2,0", "train", True, True],
    ["many", 64, 2**32 - 1, 777, "0.5 0.5", "valid", True, False],
    ["many", 64, 11, 3000, "1, 1, 1", "test", False, True],
]
WEIGHTS: list[tuple[list[float], int]] = [
    ([1.0], 20),
    ([0.3, 0.7], 1000),
    ([0.5, 0.5], 1000),
    ([0.1, 0.2, 0.7], 70000),
    ([1 / 3, 1 / 3, 1 / 3], 5000),
    ([0.001, 0.999], 5000),
    ([float(number) for number in np.arange(1, 24) / np.arange(1, 24).sum()], 8000),
    ([float(number) for number in np.arange(1, 25) / np.arange(1, 25).sum()], 8000),
    ([float(number) for number in np.arange(1, 101) % 7 + 1] / (np.arange(1, 101) % 7 + 1).sum(), 9000),
]
SIZES = [[4], [3, 5], [1, 1, 1], [100, 3, 50, 7], [10, 1, 10, 1], list(range(1, 60))]
# data_path, [train, valid, test]_data_path, sizes, split, part, sequence length, extra token, cache
BLENDS: list[list[Any]] = [
    [["1", "text"], None, [20, 0, 0], "1, 0, 0", "train", 8, True, "cache"],
    [["text"], None, [20, 0, 0], "1, 0, 0", "train", 8, True, None],
    [["0.3", "text", "0.7", "many"], None, [200, 0, 0], "1, 0, 0", "train", 8, True, "cache"],
    [["30", "text", "30", "many", "40", "empty_ones"], None, [150, 20, 0], "7,3", "train", 6, True, "cache"],
    [["30", "text", "30", "many", "40", "empty_ones"], None, [150, 20, 0], "7,3", "valid", 6, True, "cache"],
    [["text", "many"], None, [500, 0, 0], "1, 0, 0", "train", 16, False, "cache"],
    [["text", "many"], None, [5000000, 0, 0], "1, 0, 0", "train", 16, True, "cache"],
    [["text", "many", "one"], None, [None, 0, 0], "1, 0, 0", "train", 16, True, "cache"],
    [None, [["0.5", "text", "0.5", "one"], ["many"], None], [50, 60, 0], None, "train", 8, True, "cache"],
    [None, [["0.5", "text", "0.5", "one"], ["9", "many"], None], [50, 60, 0], None, "valid", 8, True, "cache"],
]


def sha(data: bytes) -> str:
    """What is kept of long arrays."""
    return hashlib.sha256(data).hexdigest()


def tokens_of(name: str) -> Iterator[np.ndarray[Any, Any]]:
    """The documents of a dataset."""
    begin = 10
    for length in DATASETS[name]:
        yield np.arange(begin, begin + length, dtype=np.int32) % 50000
        begin += length


@contextmanager
def folder_of_datasets() -> Iterator[Path]:
    """The current folder, with all datasets as Megatron-core writes them."""
    builder = importlib.import_module("megatron.core.datasets.indexed_dataset").IndexedDatasetBuilder
    torch = importlib.import_module("torch")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name in DATASETS:
            writer = builder(f"{name}.bin", dtype=np.int32)
            for tokens in tokens_of(name):
                writer.add_item(torch.from_numpy(tokens))
                writer.end_document()
            writer.finalize(f"{name}.idx")
        yield Path(folder)


def single(case: list[Any]) -> dict[str, Any]:
    """One GPTDataset of Megatron-core."""
    gpt = importlib.import_module("megatron.core.datasets.gpt_dataset")
    utils = importlib.import_module("megatron.core.datasets.utils")
    name, length, seed, samples, split, part, extra, drop_last = case
    config = gpt.GPTDatasetConfig(
        random_seed=seed,
        sequence_length=length,
        blend=([name], None),
        split=split,
        path_to_cache="cache",
        tokenizer=TOKENIZER,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=extra,
        drop_last_partial_validation_sequence=drop_last,
    )
    # Not by the builder: it makes all parts, and does not end where one has no documents.
    place = ["train", "valid", "test"].index(part)
    indexed = gpt.GPTDataset.build_low_level_dataset(name, config)
    first, last = (round(edge * len(indexed)) for edge in config.split_matrix[place])
    documents = np.arange(first, last, dtype=np.int32)
    dataset = gpt.GPTDataset(indexed, name, documents, samples, list(utils.Split)[place], config)
    stem = f"{dataset.unique_description_hash}-GPTDataset-{part}"
    arrays = {array: f"cache/{stem}-{array}.npy" for array in ("document_index", "sample_index", "shuffle_index")}
    wanted = sorted({0, 1, len(dataset) // 2, len(dataset) - 1} & set(range(len(dataset))))
    rows = [dataset[number] for number in wanted]
    return {
        "case": case,
        "hash": dataset.unique_description_hash,
        "description": dataset.unique_description,
        "files": {array: sha(Path(file).read_bytes()) for array, file in arrays.items()},
        "heads": {array: np.load(file)[:6].tolist() for array, file in arrays.items()},
        "rows": wanted,
        "tokens": [row["tokens"].tolist() for row in rows],
        "labels": [row["labels"].tolist() for row in rows],
        "counts": [row["loss_mask"].int().tolist() for row in rows],
    }


def weighted() -> list[dict[str, Any]]:
    """Megatron-core's two ways to blend."""
    helpers = importlib.import_module("megatron.core.datasets.helpers")
    found = []
    for weights, size in WEIGHTS:
        of, number = np.zeros(size, np.int16), np.zeros(size, np.int64)
        helpers.build_blending_indices(of, number, np.array(weights), len(weights), size, False)
        found.append({"weights": list(map(float, weights)), "size": size, **blended(of, number)})
    for sizes in SIZES:
        of, number = np.zeros(sum(sizes), np.int16), np.zeros(sum(sizes), np.int64)
        helpers.build_exhaustive_blending_indices(of, number, np.array(sizes), len(sizes))
        found.append({"sizes": sizes, **blended(of, number)})
    return found


def blended(of: Any, number: Any) -> dict[str, Any]:
    """What is kept of a blend."""
    return {"head": of[:30].tolist(), "datasets": sha(of.tobytes()), "samples": sha(number.tobytes())}


def with_mindformers(case: list[Any]) -> dict[str, Any]:
    """What MindFormers' builder makes, and the files that it leaves."""
    gpt = importlib.import_module("mindformers.dataset.blended_datasets.gpt_dataset")
    builder = importlib.import_module("mindformers.dataset.blended_datasets.blended_megatron_dataset_builder")
    blend = importlib.import_module("mindformers.dataset.blended_datasets.utils").get_blend_from_list
    path, paths, sizes, split, part, length, extra, cache = case
    config = gpt.GPTDatasetConfig(
        random_seed=1234,
        sequence_length=length,
        blend=blend(path),
        blend_per_split=[blend(each) for each in paths or [None] * 3],
        split=split,
        path_to_cache=cache,
        mmap_bin_files=True,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        add_extra_token_to_sequence=extra,
    )
    with folder_of_datasets() as folder:
        place = ["train", "valid", "test"].index(part)
        dataset = builder.BlendedMegatronDatasetBuilder(gpt.GPTDataset, sizes, lambda: True, config).build()[place]
        files = {
            str(path.relative_to(folder)): path
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.suffix in (".npy", ".txt") and f"-{part}-" in path.name
        }
        found = {name: path.read_text() if path.suffix == ".txt" else values(path) for name, path in files.items()}
        rows = [dataset[number] for number in range(min(len(dataset), 12))]
        tokens, labels, counts = (np.array([row[column] for row in rows]).tolist() for column in range(3))
    return {"case": case, "length": len(dataset), "files": found, "tokens": tokens, "labels": labels, "counts": counts}


def values(path: Path) -> str:
    """The hash of an array's values; a sample index has 64 bits here and 32 in Megatron-core."""
    return sha(np.load(path).astype(np.int64).tobytes())


def stand_in_for_mindspore() -> None:
    """MindFormers' datasets are imported without what they do not use."""

    def module(name: str, **content: Any) -> None:
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__dict__.update(content)

    root = next(Path(folder) / "mindformers" for folder in sys.path if (Path(folder) / "mindformers").is_dir())
    for name in ("", ".dataset", ".dataset.blended_datasets", ".tools", ".models"):
        module(f"mindformers{name}", __path__=[str(root.joinpath(*name.split(".")))])
    module("mindformers.tools.logger", logger=logging.getLogger("mindformers"))
    one_process = {"get_rank_info": lambda: (0, 1), "get_real_group_size": lambda: 1, "get_real_rank": lambda: 0}
    module("mindformers.tools.utils", set_safe_mode_for_file_or_dir=lambda _: None, **one_process)
    module("mindformers.version_control", skip_barrier_controller=lambda **_: None)
    module("mindformers.models.tokenization_utils_base", PreTrainedTokenizerBase=object)


def main() -> None:
    """All of it, beside this file."""
    stand_in_for_mindspore()
    with folder_of_datasets() as folder:
        written = {path.name: sha(path.read_bytes()) for path in sorted(folder.iterdir())}
        result = {"datasets": DATASETS, "files": written, "single": [single(case) for case in SINGLE]}
        result["blending"] = weighted()
    result["mindformers"] = [with_mindformers(case) for case in BLENDS]
    (HERE / "samples.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main()
