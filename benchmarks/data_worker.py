"""One measurement of ``data.py`` in a process of its own: prints one JSON object.

    python benchmarks/data_worker.py WHAT '{"argument": …}'

``mindspore`` is run by an interpreter that has MindSpore, so nothing of this project is imported before it is needed.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

BATCH = 8


def ours(file: str, length: int, shuffle: str | None, passes: int) -> dict[str, Any]:
    """Rows straight from the reader, as int64 arrays of a batch."""
    from runformer.data.mindrecord import MindRecordReader
    from runformer.data.order import sample_order

    with MindRecordReader(file) as reader:
        order = sample_order(len(reader), shuffle, 1)  # type: ignore[arg-type]

        def read(epoch: int) -> Iterator[Any]:
            for samples in order.runs(epoch, 0, len(reader), BATCH):
                yield reader.read_rows(samples, ["input_ids"], length)

        return {"seconds": _seconds(read, passes)}


def loader(file: str, length: int, shuffle: str | None, passes: int) -> dict[str, Any]:
    """What training gets: checked, with labels, as tensors, read ahead by a thread."""
    from runformer.config.task import DataOptions, MindRecordFiles
    from runformer.data.dataset import TokenDataset
    from runformer.data.loader import BatchLoader
    from runformer.data.order import sample_order

    options = DataOptions(MindRecordFiles((Path(file),)), ("input_ids",), shuffle, 1)  # type: ignore[arg-type]
    dataset = TokenDataset(options, length - 1, 152_000)
    batches = BatchLoader(dataset, sample_order(len(dataset), options.shuffle, 1), BATCH, drop_remainder=True)

    def read(epoch: int) -> Iterator[Any]:
        with batches.batches(epoch * batches.samples_per_epoch) as stream:
            for _ in range(batches.steps_per_epoch):
                yield next(stream)

    return {"seconds": _seconds(read, passes)}


def memmap(file: str, length: int, shuffle: str | None, passes: int) -> dict[str, Any]:
    """The same rows in a plain array on disk, memory-mapped, as int64 arrays of a batch."""
    import numpy as np

    rows = np.load(Path(file).with_suffix(".npy"), mmap_mode="r")
    assert rows.shape[1] == length

    def read(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng(epoch).permutation(len(rows)) if shuffle else np.arange(len(rows))
        for begin in range(0, len(rows), BATCH):
            yield rows[order[begin : begin + BATCH]].astype(np.int64)

    return {"seconds": _seconds(read, passes)}


def mindspore(file: str, length: int, shuffle: str | None, passes: int, workers: int = 2) -> dict[str, Any]:
    """MindSpore's MindDataset with batches of the same size."""
    import mindspore.dataset as ds

    data = ds.MindDataset(file, columns_list=["input_ids"], shuffle=bool(shuffle), num_parallel_workers=workers)
    iterator = data.batch(BATCH).create_tuple_iterator(output_numpy=True, num_epochs=passes)

    def read(_: int) -> Iterator[Any]:
        for (rows,) in iterator:
            assert rows.shape[1] == length
            yield rows

    return {"seconds": _seconds(read, passes)}


def _seconds(read: Callable[[int], Iterator[Any]], passes: int) -> list[float]:
    """Of each pass: the first one maps the file's pages, later ones find them mapped."""
    seconds = []
    for epoch in range(passes):
        began = time.perf_counter()
        for _ in read(epoch):
            pass
        seconds.append(time.perf_counter() - began)
    return seconds


def memory(file: str, length: int, batches: int) -> dict[str, Any]:
    """How much memory a process takes that opens a dataset and reads batches from all over it, in hashed order."""
    from common import peak_rss_bytes

    from runformer.data.mindrecord import MindRecordReader
    from runformer.data.order import sample_order

    began = time.perf_counter()
    with MindRecordReader(file) as reader:
        opened = time.perf_counter() - began
        order = sample_order(len(reader), "hashed", 1)
        before = _private_bytes()
        step = max(BATCH, len(reader) // batches // BATCH * BATCH)
        for begin in range(0, len(reader) - BATCH + 1, step):
            reader.read_rows(order.span(0, begin, begin + BATCH), ["input_ids"], length)
        return {
            "samples": len(reader),
            "opened": opened,
            "peak": peak_rss_bytes(),
            "private": _private_bytes(),
            "grown": _private_bytes() - before,
        }


def _private_bytes() -> int:
    """Memory of this process alone: not the pages of files, which the kernel takes back when it needs them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:"))


WHAT = {"ours": ours, "loader": loader, "memmap": memmap, "mindspore": mindspore, "memory": memory}

if __name__ == "__main__":
    print(json.dumps(WHAT[sys.argv[1]](**json.loads(sys.argv[2]))))
