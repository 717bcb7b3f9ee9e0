"""What the benchmarks share: the machine's description, peak memory, tables."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent

SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    # Its biases are left out: on the peer's side it is a Llama, too.
    "Qwen2.5-0.5B": {
        "vocab_size": 151936,
        "hidden_size": 896,
        "intermediate_size": 4864,
        "num_hidden_layers": 24,
        "num_attention_heads": 14,
        "num_key_value_heads": 2,
    },
}
"""Shapes of real models, by Hugging Face's names; both have tied embeddings."""

COMMON_SHAPE: dict[str, Any] = {"max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}


def describe_machine(device: str = "cpu") -> str:
    """Processor or GPU, cores and the versions that figures depend on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        model = names[0] if names else model
    if device == "cuda":
        import torch

        model = f"{torch.cuda.get_device_name()}, driver of CUDA {torch.version.cuda}, {model}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers"))
    return f"{model}, {os.cpu_count()} cores, {versions}, Python {platform.python_version()}"


def peak_rss_bytes() -> int:
    """The most memory that this process was resident in so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def write_table(title: str, head: list[str], rows: list[list[str]], output: Path | None) -> None:
    """Print a Markdown table, and write it to a file where one is given."""
    lines = [title, "", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows))]
    text = "\n".join(lines) + "\n"
    print(text)
    if output is not None:
        output.write_text(text, encoding="utf-8")
