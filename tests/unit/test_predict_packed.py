"""Merged and packed weights give what the layers they replace gave, for the model they came from and no other."""

from __future__ import annotations

import gc
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from runformer.config.task import LoraOptions, ModelOptions, Precision
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.models.lora import LoraLinear
from runformer.parallel.compose import undivided
from runformer.predict import compiling, packed
from runformer.predict.cache import round_up
from runformer.predict.engine import Generator
from runformer.predict.packed import PackedLinear
from runformer.predict.settings import LengthLimit, Settings
from runformer.predict.weights import prepare_for_generation

CPU = torch.device("cpu")
needs_onednn = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this build of torch has no oneDNN")
SIZES: dict[str, Any] = {
    "vocab_size": 199, "hidden_size": 32, "intermediate_size": 80, "num_layers": 2, "num_heads": 4,
    "num_kv_heads": 2, "head_dim": 8, "max_positions": 64, "initializer_range": 0.3,
}  # fmt: skip
VARIANTS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tie_embeddings": True},
    "all biases": {"qkv_bias": True, "attention_output_bias": True, "mlp_bias": True},
    "normalised heads": {"qk_norm": True, "head_dim": 16},
}


def make(variant: str, *, seed: int = 3, compute: Any = "float32", lora: LoraOptions | None = None) -> CausalLM:
    model = build_model(ModelOptions(**(SIZES | VARIANTS[variant])), Precision(compute=compute), CPU, lora)
    initialise(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias") or ".lora_B." in name:
                parameter.normal_(0.0, 0.3)
    return model.eval()


@needs_onednn
@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 70),
    sizes=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_packed_layer_gives_the_plain_product(
    rows: int, sizes: tuple[int, int], dtype: torch.dtype, bias: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rows, sizes[0], generator=generator).to(dtype)
    weight = torch.randn(sizes[1], sizes[0], generator=generator).to(dtype)
    offset = torch.randn(sizes[1], generator=generator).to(dtype) if bias else None
    exact = F.linear(x.double(), weight.double(), None if offset is None else offset.double())
    with torch.no_grad():
        actual = PackedLinear(weight, offset)(x)
    assert actual.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert (actual.double() - exact).abs().max() <= tolerance * exact.abs().max() + 1e-12


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_prepared_model_gives_the_same_logits(variant: str) -> None:
    model = make(variant)
    tokens = torch.randint(SIZES["vocab_size"], (3, 17), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        before = model.logits(model(tokens))
        prepare_for_generation(model)
        after = model.logits(model(tokens))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    assert {"qkv_proj", "gate_up_proj"} <= names
    assert not {"q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"} & names, "the memory of the parts is given back"


def test_bfloat16_weights_are_cast_once_and_norms_keep_float32() -> None:
    model = make("tied", compute="bfloat16")
    prepare_for_generation(model)
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.float32


def test_layers_with_adapters_stay_as_they_are() -> None:
    model = make("llama", lora=LoraOptions(rank=4, alpha=8, dropout=0.0, target_modules=".*wq|.*w1"))
    tokens = torch.arange(20).view(2, 10)
    with torch.inference_mode():
        before = model.logits(model(tokens))
        prepare_for_generation(model)
        after = model.logits(model(tokens))
    assert (after - before).abs().max() <= 1e-5 * before.abs().max()
    adapted = [name for name, module in model.named_modules() if isinstance(module, LoraLinear)]
    assert len(adapted) == 2 * SIZES["num_layers"]


@needs_onednn
def test_packed_weights_go_with_their_model() -> None:
    gc.collect()
    before = len(packed._packed)
    model = make("llama")
    prepare_for_generation(model)
    assert len(packed._packed) == before + 4 * SIZES["num_layers"] + 1
    del model
    gc.collect()
    assert len(packed._packed) == before


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled_models_of_one_shape_keep_their_own_weights() -> None:
    prompts = [[5, 17, 3], [9, 2, 8]]
    chosen = Settings(max_new_tokens=6)
    for seed in (1, 2):
        model = make("tied", seed=seed)
        prepare_for_generation(model)
        lengths = LengthLimit(chosen, SIZES["max_positions"])
        whole = undivided(model)
        texts = [
            Generator(whole, chosen, eos_ids=frozenset(), lengths=lengths, compile=compiled).generate(prompts)
            for compiled in (False, True)
        ]
        assert texts[0] == texts[1]


@pytest.fixture
def own_compiler_settings() -> Iterator[None]:
    """Generation sets the compiler's limit for its whole process, which is one run; later tests keep theirs."""
    with torch._dynamo.config.patch(recompile_limit=torch._dynamo.config.recompile_limit):
        yield
    torch.compiler.reset()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
@pytest.mark.usefixtures("own_compiler_settings")
def test_more_shapes_than_may_be_compiled_run_eagerly_and_it_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiling, "_SHAPES", 1)
    torch.compiler.reset()
    model = make("llama")
    prepare_for_generation(model)
    chosen = Settings(max_new_tokens=4)
    lengths = LengthLimit(chosen, SIZES["max_positions"])
    whole = undivided(model)
    eager, compiled = (
        Generator(whole, chosen, eos_ids=frozenset(), lengths=lengths, compile=mode) for mode in (False, True)
    )
    for prompts in ([[5, 17, 3]], [[5, 17, 3], [9, 2, 8]], [[1, 2, 3]] * 3):
        assert compiled.generate(prompts) == eager.generate(prompts)
    assert sum("generation runs eagerly" in record.message for record in caplog.records) == 1


@given(st.integers(1, 10**6))
def test_a_compiled_cache_holds_the_text_and_wastes_at_most_half_of_it(length: int) -> None:
    capacity = round_up(length)
    assert length <= capacity <= max(1.5 * length, 2)
    assert len({round_up(shorter) for shorter in range(1, 2049)}) < 24, "few sizes, so few compilations"
