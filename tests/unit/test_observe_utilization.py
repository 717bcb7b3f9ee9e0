"""FLOPs a token against counted weights, peaks by device name, and memory high-water marks."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from runformer.config.task import ModelOptions
from runformer.observe import flops_per_token, model_flops_utilization, peak_flops, peak_memory_bytes

SMOLLM2_135M = ModelOptions(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_layers=30,
    num_heads=9,
    num_kv_heads=3,
    head_dim=64,
    max_positions=8192,
    tie_embeddings=True,
)
TINY = replace(
    SMOLLM2_135M,
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_layers=2,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
)


def test_flops_equal_those_that_torch_counts():
    """Forward and backward of Hugging Face's Llama, every matrix product counted by PyTorch itself."""
    config = LlamaConfig(
        vocab_size=TINY.vocab_size,
        hidden_size=TINY.hidden_size,
        intermediate_size=TINY.intermediate_size,
        num_hidden_layers=TINY.num_layers,
        num_attention_heads=TINY.num_heads,
        num_key_value_heads=TINY.num_kv_heads,
        tie_word_embeddings=False,
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    tokens = torch.randint(TINY.vocab_size, (2, 16))
    with FlopCounterMode(display=False) as counter:
        model(tokens, labels=tokens).loss.backward()
    # torch also counts the rotary table, an outer product of positions and frequencies, once a batch.
    rotary = 2 * tokens.numel() * TINY.head_dim // 2
    assert flops_per_token(TINY, 16) * tokens.numel() == pytest.approx(counter.get_total_flops(), abs=rotary)


def test_flops_of_a_real_model():
    weights = 134_515_008 - 61 * 576  # the published parameter count, which ties the embedding, without norms
    assert flops_per_token(SMOLLM2_135M, 256) == 6 * weights + 12 * 30 * 9 * 64 * 256


def test_frozen_weights_cost_a_third_less():
    assert flops_per_token(SMOLLM2_135M, 0, frozen=True) == pytest.approx(flops_per_token(SMOLLM2_135M, 0) * 4 / 6)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA GH200 480GB", 989e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("Tesla K80", None),
    ],
)
def test_peaks_by_name(monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None):
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(get_device_name=lambda _: name))
    assert peak_flops(torch.device("cuda", 0)) == peak


def test_a_cpu_has_no_peak_and_no_mfu():
    peak = peak_flops(torch.device("cpu"))
    assert peak is None
    assert model_flops_utilization(1000.0, 1e9, peak) is None
    assert model_flops_utilization(1000.0, 1e9, 4e12) == 0.25


def test_memory_of_an_accelerator_is_what_its_allocator_saw(monkeypatch: pytest.MonkeyPatch):
    allocated = {torch.device("cuda", 0): 5, torch.device("cuda", 1): 7}
    monkeypatch.setattr(torch, "get_device_module", lambda _: SimpleNamespace(max_memory_allocated=allocated.get))
    assert peak_memory_bytes(torch.device("cuda", 1)) == 7


PEAK = """
import mmap, torch
from runformer.observe import peak_memory_bytes

before = peak_memory_bytes(torch.device("cpu"))
block = mmap.mmap(-1, 300 << 20)
block.write(b"x" * (300 << 20))
during = peak_memory_bytes(torch.device("cpu"))
block.close()
print(before, during, peak_memory_bytes(torch.device("cpu")))
"""


def test_memory_of_a_process_is_its_high_water_mark():
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, during, after = map(int, done.stdout.split())
    assert during - before >= 290 << 20
    assert after >= during


def test_memory_where_there_is_no_proc(monkeypatch: pytest.MonkeyPatch):
    from runformer.observe import utilization

    monkeypatch.setattr(utilization.Path, "read_text", lambda _: "Name: x\n")
    assert 10 << 20 < peak_memory_bytes(torch.device("cpu")) < 1 << 40
