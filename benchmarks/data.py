"""Data: how fast rows are read and texts are encoded, how full packed rows are, and how much memory it takes.

    python benchmarks/data.py --mindspore /path/to/python --trl /path/to/packages --output benchmarks/data.md

``--mindspore`` is an interpreter of an environment of its own with ``mindspore==2.7.0``; ``--trl`` a folder that
``pip install --no-deps --target FOLDER trl`` has filled. Without them those columns stay empty. Ours and the peers'
take turns in one run, each in a process of its own, several rounds in an order of chance; medians.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from common import REPOSITORY, describe_machine

sys.path[:0] = [str(REPOSITORY / folder) for folder in ("tests/unit", "tests")]

from runformer.data.conversations import encode_alpaca  # noqa: E402
from runformer.data.mindrecord import Column, MindRecordWriter  # noqa: E402
from runformer.data.packing import best_fit  # noqa: E402
from runformer.tokenizer import load_tokenizer  # noqa: E402

WORKER = REPOSITORY / "benchmarks/data_worker.py"
RECORDS, TOKENS, VOCABULARY = 20_000, 4_097, 152_000
PASSES = 3


def section(title: str, text: str, head: list[str], lines: list[list[str]]) -> str:
    """A heading, a sentence and a table, in Markdown."""
    table = "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines))
    found = f"## {title}\n\n{text}\n\n{table}\n"
    print(found, flush=True)
    return found


def measure(interpreter: str | Path, what: str, **arguments: Any) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [str(interpreter), str(WORKER), what, json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    if done.returncode:
        raise SystemExit(f"{what}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def write_rows(file: Path) -> None:
    """Random rows as a MindRecord file, and beside it as a plain array."""
    generator = np.random.default_rng(0)
    array = np.lib.format.open_memmap(file.with_suffix(".npy"), "w+", np.int32, (RECORDS, TOKENS))
    with MindRecordWriter(file, {"input_ids": Column("int32", (-1,))}) as writer:
        for begin in range(0, RECORDS, 100):
            array[begin : begin + 100] = generator.integers(0, VOCABULARY, (100, TOKENS), np.int32)
            writer.write([{"input_ids": row} for row in array[begin : begin + 100]])
    array.flush()


def reading(folder: Path, mindspore: Path | None, rounds: int) -> str:
    """Tokens a second of whole passes, ours and the others'."""
    file = folder / "rows.mindrecord"
    write_rows(file)
    peers: list[tuple[str, str | Path]] = [("ours", sys.executable), ("loader", sys.executable)]
    peers += [("memmap", sys.executable)] + ([("mindspore", mindspore)] if mindspore else [])
    first: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    later: dict[tuple[str, str | None], list[float]] = defaultdict(list)
    cases = [(peer, interpreter, order) for peer, interpreter in peers for order in (None, "reference", "hashed")]
    cases = [case for case in cases if case[0] in ("ours", "loader") or case[2] != "hashed"]
    for _ in range(rounds):
        for peer, interpreter, order in random.sample(cases, len(cases)):
            found = measure(interpreter, peer, file=str(file), length=TOKENS, shuffle=order, passes=PASSES)["seconds"]
            first[peer, order].append(found[0])
            later[peer, order] += found[1:]
    return _reading_table(first, later)


def _reading_table(first: dict[Any, list[float]], later: dict[Any, list[float]]) -> str:
    names = {"ours": "ours: rows", "loader": "ours: batches as training gets them", "memmap": "NumPy memory map"}
    names["mindspore"] = "MindSpore's MindDataset, 2 workers"
    orders = {None: "in order", "reference": "shuffled", "hashed": "shuffled (hashed)"}
    lines = []
    for (peer, order), seconds in sorted(later.items(), key=lambda item: (str(item[0][1]), item[0][0])):
        speed = RECORDS * TOKENS / statistics.median(seconds)
        base = "reference" if order else None
        ratios = []
        for other in ("mindspore", "memmap"):
            beside = later.get((other, base))
            ratio = statistics.median(beside) / statistics.median(seconds) if beside else None
            ratios.append("" if ratio is None or peer == other else f"{ratio:.2f}")
        early = RECORDS * TOKENS / statistics.median(first[peer, order])
        lines.append([names[peer], orders[order], f"{early / 1e6:,.0f}", f"{speed / 1e6:,.0f}", *ratios])
    text = (
        f"{RECORDS:,} records of {TOKENS:,} random tokens below {VOCABULARY:,}, in the page cache; batches of 8 rows "
        "as int64 (MindDataset: int32). Millions of tokens a second in the first pass, which maps the file's pages, "
        "and in later ones; ratios are of later ones. Goals: 5 times MindDataset, 0.5 times the memory map."
    )
    head = ["", "order", "first pass, M tokens/s", "later", "x MindDataset", "x memory map"]
    return section("Reading", text, head, lines)


def repeated_text(folder: Path, megabytes: int) -> Path:
    """Paragraphs of WikiText, each a record, over and over in other orders."""
    texts = (REPOSITORY.parent / "shared/data/wikitext2_valid.txt").read_text(encoding="utf-8")
    paragraphs = [line for line in texts.split("\n") if len(line) > 80]
    generator, path = random.Random(0), folder / "repeated.jsonl"
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            generator.shuffle(paragraphs)
            file.writelines(json.dumps({"text": paragraph}, ensure_ascii=False) + "\n" for paragraph in paragraphs)
    return path


def varied_text(folder: Path, megabytes: int) -> Path:
    """The sources of the packages that are installed here, each file a record, each once."""
    path, seen = folder / "varied.jsonl", set()
    with path.open("w", encoding="utf-8") as file:
        for source in sorted(Path(np.__file__).parents[1].rglob("*.py")):
            text = source.read_text(encoding="utf-8", errors="ignore")
            if text.strip() and hash(text) not in seen and file.tell() < megabytes * 1_000_000:
                seen.add(hash(text))
                file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
    return path


PEER_MAP = """
import sys, datasets, transformers
source, model, target = sys.argv[1:]
datasets.disable_progress_bars()
tokenizer = transformers.AutoTokenizer.from_pretrained(model)
data = datasets.load_dataset("json", data_files=source, split="train", cache_dir=target + "-cache")
encode = lambda batch: {"input_ids": [ids + [tokenizer.eos_token_id] for ids in tokenizer(batch["text"])["input_ids"]]}
data = data.map(encode, batched=True, num_proc=2, remove_columns=data.column_names)
data.save_to_disk(target)
print(sum(map(len, data["input_ids"])))
"""


def tokenising(folder: Path, model: Path, megabytes: int, rounds: int) -> str:
    """Seconds from a JSONL file to token ids on disk."""
    lines = []
    for source in (varied_text(folder, megabytes), repeated_text(folder, megabytes)):
        seconds: dict[str, list[float]] = {"ours": [], "datasets.map": []}
        tokens = 0
        for number in range(rounds):
            for peer in random.sample(sorted(seconds), 2):
                target = folder / f"tokens-{number}-{peer}"
                command = _encode_command(peer, source, model, target)
                began = time.perf_counter()
                done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=True, cwd=REPOSITORY)
                seconds[peer].append(time.perf_counter() - began)
                tokens = int(done.stdout.split()[-1]) if peer != "ours" else tokens
                for path in folder.glob(f"tokens-{number}-*"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        medians = {peer: statistics.median(found) for peer, found in seconds.items()}
        size = source.stat().st_size / 1e6
        for peer, median in medians.items():
            ratio = f"{medians['datasets.map'] / median:.2f}"
            lines.append([source.stem, f"{size:.0f}", peer, f"{median:.1f}", f"{tokens / median / 1e6:.2f}", ratio])
    text = (
        "JSON lines and SmolLM2's tokenizer, two processes each, from the start of the command to files on disk: ours "
        f"to Megatron's .bin and .idx; `datasets` {version('datasets')} by load_dataset, map(batched=True, num_proc=2) "
        "and save_to_disk. Varied are the sources of installed packages, each once; repeated are paragraphs of "
        "WikiText in many orders. Goal: 1.5 x."
    )
    return section("Encoding", text, ["text", "MB", "", "seconds", "M tokens/s", "x datasets.map"], lines)


def _encode_command(peer: str, source: Path, model: Path, target: Path) -> list[str]:
    if peer != "ours":
        return [sys.executable, "-c", PEER_MAP, str(source), str(model), str(target)]
    command = [sys.executable, "-m", "runformer", "preprocess", "--input", str(source), "--output", str(target)]
    return [*command, "--tokenizer", str(model), "--stage", "pretrain", "--to", "megatron", "--append_eod"]


PEER_PACK = """
import sys, json, datasets
sys.path.insert(0, sys.argv[1])
datasets.disable_progress_bars()
from trl import pack_dataset
lengths, capacity = json.load(open(sys.argv[2])), int(sys.argv[3])
data = datasets.Dataset.from_dict({"input_ids": [[1] * n for n in lengths if n <= capacity]})
for strategy in ("bfd", "wrapped"):
    packed = pack_dataset(data, capacity, strategy)
    print(strategy, len(packed))
"""


def packing(folder: Path, model: Path, trl: Path | None) -> str:
    """Rows and fullness of alpaca_en.json, packed."""
    tokenizer = load_tokenizer(model)
    records = json.loads((REPOSITORY.parent / "shared/data/alpaca_en.json").read_text(encoding="utf-8"))
    lengths = [
        len(encode_alpaca(tokenizer, item["instruction"], item.get("input", ""), item["output"], "alpaca").tokens)
        for item in records
    ]
    lines = []
    for capacity in (512, 2048):
        kept = [length for length in lengths if length <= capacity]
        tokens = sum(kept)

        def line(name: str, rows: int, cut: str, tokens: int = tokens, capacity: int = capacity) -> list[str]:
            return [str(capacity), name, f"{rows:,}", f"{tokens / rows / capacity:.2%}", cut]

        began = time.perf_counter()
        rows = len(best_fit(kept, capacity))
        lines.append(line(f"ours, best fit ({(time.perf_counter() - began) * 1000:.0f} ms)", rows, "none"))
        if trl is not None:
            places = folder / "lengths.json"
            places.write_text(json.dumps(lengths))
            command = [sys.executable, "-c", PEER_PACK, str(trl), str(places), str(capacity)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
            found = dict(row.split() for row in done.stdout.splitlines())
            lines.append(line("TRL, bfd", int(found["bfd"]), "none"))
            lines.append(line("TRL, wrapped", int(found["wrapped"]), _cut(kept, capacity)))
        whole = -(-tokens // capacity)
        lines.append(line("Megatron's GPTDataset (documents one after the other)", whole, _cut(kept, capacity)))
        lines.append(line("one a row, padded", len(kept), "none"))
    text = (
        f"The {len(lengths):,} records of alpaca_en.json ({sum(lengths):,} tokens of SmolLM2's tokenizer, Alpaca's "
        "prompt), those that are longer than a row left out. Goal: 99 % at 2,048 with no document cut."
    )
    return section("Packing", text, ["row", "", "rows", "real tokens", "documents cut"], lines)


def _cut(lengths: list[int], capacity: int) -> str:
    """How many documents lie over the border of two rows when one follows the other."""
    ends = np.cumsum(lengths)
    begins = ends - np.array(lengths)
    return f"{int((begins // capacity != (ends - 1) // capacity).sum()) / len(lengths):.1%}"


TASK = """
run_mode: finetune
use_legacy: False
pretrained_model_dir: {model}
trainer: {{type: CausalLanguageModelingTrainer, model_name: smollm2}}
model: {{model_config: {{seq_length: 512, compute_dtype: bfloat16, params_dtype: float32}}}}
train_dataset: &train_dataset
  data_loader: {{type: MindDataset, dataset_dir: {rows}, shuffle: True, num_samples: 16}}
  input_columns: {columns}
train_dataset_task: {{type: CausalLanguageModelDataset, dataset_config: *train_dataset}}
runner_config: {{epochs: 1, batch_size: 2}}
optimizer: {{type: AdamW}}
lr_schedule: {{type: ConstantWarmUpLR, learning_rate: 1.e-5}}
callbacks: [{{type: MFLossMonitor}}]
"""


def training(folder: Path, model: Path, rounds: int) -> str:
    """Real tokens a second of a training run on rows with a sample each, and on packed ones."""
    source = REPOSITORY.parent / "shared/data/alpaca_en.json"
    preprocess = [sys.executable, "-m", "runformer", "preprocess", "--input", str(source), "--tokenizer", str(model)]
    speeds: dict[str, list[float]] = {"padded": [], "packed": []}
    waited: dict[str, list[float]] = {"padded": [], "packed": []}
    shares = {}
    for kind, flags in (("padded", []), ("packed", ["--pack"])):
        rows = folder / f"{kind}.mindrecord"
        command = [*preprocess, "--output", str(rows), "--seq_length", "512", *flags]
        subprocess.run(command, check=True, capture_output=True, cwd=REPOSITORY)
        stats = [sys.executable, "-m", "runformer", "data", "stats", str(rows), "--json"]
        found = json.loads(subprocess.run(stats, check=True, capture_output=True, text=True, cwd=REPOSITORY).stdout)
        shares[kind] = found["tokens"] / found["stored_tokens"]
        columns = "[input_ids, labels, actual_seq_len]" if flags else "[input_ids, labels]"
        (folder / f"{kind}.yaml").write_text(TASK.format(model=model, rows=rows, columns=columns))
    for number in range(rounds):
        for kind in random.sample(sorted(speeds), 2):
            output = folder / f"run-{kind}-{number}"
            command = [sys.executable, str(REPOSITORY / "run_mindformer.py"), "--config", f"{kind}.yaml"]
            subprocess.run([*command, "--output_dir", str(output)], check=True, capture_output=True, cwd=folder)
            steps = [json.loads(line) for line in (output / "training.jsonl").read_text().splitlines()][2:]
            speeds[kind] += [step["tokens_per_second"] * shares[kind] for step in steps]
            waited[kind] += [step["data_seconds"] / step["step_seconds"] for step in steps]
    base = statistics.median(speeds["padded"])
    lines = [
        [
            kind,
            f"{shares[kind]:.1%}",
            f"{median:,.0f}",
            f"{median / base:.2f}",
            f"{statistics.median(waited[kind]):.3%}",
        ]
        for kind in speeds
        if (median := statistics.median(speeds[kind]))
    ]
    text = (
        "Fine-tuning SmolLM2-135M on alpaca_en.json by the command: rows of 512 tokens, 2 a step, bfloat16 products. "
        "A sample a row, or packed, where attention stays within each. The goal for waiting is 1 %."
    )
    head = ["rows", "real tokens", "real tokens/s", "x padded", "of a step spent waiting for data"]
    return section("Training", text, head, lines)


def memory(folder: Path, sizes: list[int]) -> str:
    """What opening and reading takes, however many samples there are."""
    lines = []
    for size in sizes:
        file = folder / f"{size}.mindrecord"
        with MindRecordWriter(file, {"input_ids": Column("int32", (-1,))}) as writer:
            rows = np.random.default_rng(0).integers(0, VOCABULARY, (10_000, 9), np.int32)
            for _ in range(size // len(rows)):
                writer.write([{"input_ids": row} for row in rows])
        for indexed in (True, False):
            if not indexed:
                file.with_name(file.name + ".db").unlink()
            found = measure(sys.executable, "memory", file=str(file), length=9, batches=20_000)
            assert found["samples"] == size
            lines.append(
                [
                    f"{size:,}",
                    "yes" if indexed else "no",
                    f"{found['opened'] * 1000:.1f}",
                    f"{found['private'] / 1e6:.0f}",
                    f"{found['grown'] / 1e6:.1f}",
                ]
            )
        file.unlink()
    text = (
        "MindRecord files of records of 9 tokens: opened, then up to 20,000 batches of 8 from all over the file, in "
        "hashed order. Memory of the process alone, without pages of the file, which the kernel takes back when needed."
    )
    head = ["samples", "index (.db)", "opened in ms", "memory, MB", "of which for places, MB"]
    return section("Memory", text, head, lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mindspore", type=Path, help="an interpreter that has MindSpore")
    parser.add_argument("--trl", type=Path, help="a folder that has TRL")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--megabytes", type=int, default=100, help="of text to encode")
    parser.add_argument("--samples", type=int, nargs="+", default=[10**4, 10**5, 10**6, 10**7])
    parser.add_argument("--only", nargs="+", choices=("reading", "tokenising", "packing", "training", "memory"))
    parser.add_argument("--output", type=Path, help="a Markdown file to write")
    options = parser.parse_args()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from smollm2_files import smollm2_folder

    parts = [f"# Data\n\n{describe_machine()}\n"]
    with tempfile.TemporaryDirectory(prefix="data-") as name:
        folder = Path(name)
        sections = {
            "reading": lambda: reading(folder, options.mindspore, options.rounds),
            "tokenising": lambda: tokenising(folder, smollm2_folder(), options.megabytes, options.rounds),
            "packing": lambda: packing(folder, smollm2_folder(), options.trl),
            "training": lambda: training(folder, smollm2_folder(), options.rounds),
            "memory": lambda: memory(folder, options.samples),
        }
        parts += [make() for what, make in sections.items() if not options.only or what in options.only]
    if options.output:
        options.output.write_text("\n".join(parts), encoding="utf-8")


if __name__ == "__main__":
    main()
