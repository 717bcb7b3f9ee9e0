"""Tokens a second of generation against Hugging Face's ``generate``, both in one run, turn by turn.

    python benchmarks/generate.py --output benchmarks/generate.md

The model has a real one's shape and random weights, the same on both sides. Each round asks every
contender once, so a machine that is slow for a while is slow for all; medians over the rounds are compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from common import COMMON_SHAPE, SHAPES, describe_machine, write_table
from transformers import LlamaConfig, LlamaForCausalLM

from runformer.config.task import DeviceOptions, DType, Precision
from runformer.models.build import build_model
from runformer.models.decoder import TORCH_DTYPES
from runformer.models.families import options_from_config
from runformer.parallel.compose import undivided
from runformer.parallel.device import resolve_device
from runformer.predict.engine import Generator
from runformer.predict.settings import LengthLimit, Settings
from runformer.predict.weights import prepare_for_generation

Contender = Callable[[list[list[int]]], object]


def make_contenders(
    shape: str, device: torch.device, dtype: DType, new_tokens: int, modes: list[str]
) -> dict[str, Contender]:
    torch.manual_seed(0)
    sizes = SHAPES[shape] | COMMON_SHAPE
    config = LlamaConfig(**sizes, rope_theta=100_000.0, eos_token_id=None, pad_token_id=None)
    theirs = LlamaForCausalLM(config).to(device, TORCH_DTYPES[dtype]).eval()
    options = options_from_config(config.to_dict(), "benchmark")
    ours = build_model(options, Precision(parameters=dtype, compute=dtype), device)
    ours.load_state_dict(theirs.state_dict(), strict=False)  # theirs also lists the tied output layer
    prepare_for_generation(ours)
    settings = Settings(max_new_tokens=new_tokens)
    lengths = LengthLimit(settings, options.max_positions)

    def ask_them(prompts: list[list[int]]) -> object:
        tokens = torch.tensor(prompts, device=device)
        mask = torch.ones_like(tokens)
        return theirs.generate(tokens, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False).tolist()

    contenders: dict[str, Contender] = {"transformers": ask_them}
    for mode in modes:
        engine = Generator(undivided(ours), settings, eos_ids=frozenset(), lengths=lengths, compile=mode == "compiled")
        contenders[mode] = engine.generate
    return contenders


def measure(
    contenders: dict[str, Contender], vocabulary: int, batch: int, prompt_tokens: int, rounds: int
) -> dict[str, list[float]]:
    """Seconds of every round; the first, in which code is compiled and memory is touched, is no measure of speed."""
    prompts = torch.randint(3, vocabulary, (batch, prompt_tokens)).tolist()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds + 1):
        for name, ask in contenders.items():
            started = time.perf_counter()
            ask(prompts)
            seconds[name].append(time.perf_counter() - started)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--dtypes", nargs="+", choices=["float32", "bfloat16"], default=["float32", "bfloat16"])
    parser.add_argument("--modes", nargs="+", choices=["eager", "compiled"], default=["eager", "compiled"])
    parser.add_argument("--shape", choices=SHAPES, default="SmolLM2-135M")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with (
        tempfile.TemporaryDirectory() as cache
    ):  # an empty one: what earlier runs compiled would shorten the first round
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
        run(arguments)


def run(arguments: argparse.Namespace) -> None:
    device = resolve_device(DeviceOptions(arguments.device, 0))  # as the commands do, with what it sets

    title = (
        f"Tokens/s of {arguments.shape}, median of {arguments.rounds} rounds: {arguments.prompt_tokens} prompt tokens, "
        f"{arguments.new_tokens} new ones, {arguments.threads} threads, {describe_machine(arguments.device)}"
    )
    head = ["dtype", "batch", "transformers", *(cell for mode in arguments.modes for cell in (mode, "ratio"))]
    head += [f"{mode}: first round longer by s" for mode in arguments.modes]
    rows = []
    for dtype in arguments.dtypes:
        contenders = make_contenders(arguments.shape, device, dtype, arguments.new_tokens, arguments.modes)
        for batch in arguments.batches:
            seconds = measure(
                contenders, SHAPES[arguments.shape]["vocab_size"], batch, arguments.prompt_tokens, arguments.rounds
            )
            medians = {name: statistics.median(taken[1:]) for name, taken in seconds.items()}
            speed = {name: batch * arguments.new_tokens / median for name, median in medians.items()}
            base = speed.pop("transformers")
            cells = [cell for value in speed.values() for cell in (f"{value:.1f}", f"{value / base:.2f}")]
            firsts = [f"{seconds[mode][0] - medians[mode]:.1f}" for mode in arguments.modes]
            rows.append([dtype, str(batch), f"{base:.1f}", *cells, *firsts])
            print(rows[-1], flush=True)
    write_table(title, head, rows, arguments.output)


if __name__ == "__main__":
    main()
