"""The engine against Hugging Face's ``generate`` on random tiny models, and against itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from runformer.config.task import ModelOptions, Precision
from runformer.errors import PredictError
from runformer.models.build import build_model, initialise
from runformer.models.decoder import CausalLM
from runformer.models.families import options_from_config
from runformer.parallel.compose import undivided
from runformer.predict.engine import Generator
from runformer.predict.settings import LengthLimit, Settings

CPU = torch.device("cpu")
SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,  # large weights: texts that do not end in one token repeated
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
FAMILIES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 16}),
}
PROMPTS = [[5, 17, 3, 120, 44], [9], [61, 61, 2, 8, 150, 33, 71, 12, 90], [7, 101]]


def pair(family: str) -> tuple[Any, CausalLM]:
    """One random model, theirs and ours."""
    config_class, model_class, extra = FAMILIES[family]
    torch.manual_seed(7)
    theirs = model_class(config_class(**SIZES, **extra)).eval()
    ours = build_model(options_from_config(theirs.config.to_dict(), family), Precision(), CPU)
    ours.load_state_dict(theirs.state_dict(), strict=not ours.options.tie_embeddings)
    return theirs, ours


def tiny(**changes: Any) -> CausalLM:
    """A random Llama of ours."""
    sizes: dict[str, Any] = {
        "vocab_size": 199, "hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 2, "head_dim": 8, "max_positions": 64, "initializer_range": 0.3,
    }  # fmt: skip
    model = build_model(ModelOptions(**(sizes | changes)), Precision(), CPU)
    initialise(model, seed=3)
    return model


def generator(model: CausalLM, *, eos: frozenset[int] = frozenset(), **options: Any) -> Generator:
    seed, compiled = options.pop("seed", 0), options.pop("compile", False)
    settings = Settings(**options)
    lengths = LengthLimit(settings, model.options.max_positions)
    return Generator(undivided(model), settings, eos_ids=eos, lengths=lengths, seed=seed, compile=compiled)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_tokens_are_those_of_transformers(family: str) -> None:
    theirs, ours = pair(family)
    for prompt in PROMPTS:
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=64, do_sample=False, use_cache=True)
        assert generator(ours, max_new_tokens=64).generate([prompt]) == expected.tolist()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_of_unequal_prompts_equals_one_by_one(family: str) -> None:
    _, ours = pair(family)
    engine = generator(ours, max_new_tokens=40)
    assert engine.generate(PROMPTS) == [engine.generate([prompt])[0] for prompt in PROMPTS]


def test_the_ids_of_the_original(oracle_dir: Path) -> None:
    case = oracle_dir / "predict_greedy"
    options = options_from_config(json.loads((case / "init_hf" / "config.json").read_text()), "config.json")
    model = build_model(options, Precision(), CPU)
    model.load_state_dict(load_file(case / "init_hf" / "model.safetensors"))
    padded = json.loads((case / "input_ids_padded.json").read_text())
    prompts = [ids[: ids.index(0)] if 0 in ids else ids for ids in padded]
    expected = [json.loads(line)["output_ids"] for line in (case / "expected.jsonl").read_text().splitlines()]
    assert generator(model, eos=frozenset([0]), max_length=48).generate(prompts) == expected


def test_the_texts_of_these_models_are_worth_comparing() -> None:
    for family in FAMILIES:
        ids = generator(pair(family)[1], max_new_tokens=64).generate(PROMPTS)
        assert min(len(set(row)) for row in ids) > 10, family


def test_each_row_ends_where_it_would_end_alone() -> None:
    model = tiny()
    free = generator(model, max_new_tokens=30).generate(PROMPTS)
    eos = frozenset([free[0][len(PROMPTS[0]) + 4], free[2][len(PROMPTS[2]) + 9]])
    engine = generator(model, eos=eos, max_new_tokens=30)
    for prompt, text, whole in zip(PROMPTS, engine.generate(PROMPTS), free, strict=True):
        ends = [i for i in range(len(prompt), len(whole)) if whole[i] in eos]
        assert text == (whole[: ends[0] + 1] if ends else whole)


@pytest.mark.parametrize("length", [10, 11, 40, 64, 1000])
def test_max_length_counts_the_prompt_of_each_row(length: int) -> None:
    texts = generator(tiny(), max_length=length).generate(PROMPTS)
    assert {len(text) for text in texts} == {min(length, 64)}


def test_a_prompt_without_room_is_refused() -> None:
    with pytest.raises(PredictError, match=r"prompt of 9 tokens .* max_length 9"):
        generator(tiny(), max_length=9).generate(PROMPTS)


def uncached(model: CausalLM, ids: list[int], steps: int, hidden_id: int) -> list[int]:
    """The oracle of masked keys: every step runs the whole text anew under a mask made here."""
    for _ in range(steps):
        tokens = torch.tensor([ids])
        mask = torch.ones(len(ids), len(ids), dtype=torch.bool).tril() & (tokens != hidden_id)
        mask |= torch.eye(len(ids), dtype=torch.bool) & ~mask.any(-1, keepdim=True)
        with torch.no_grad():
            ids = [*ids, int(model.logits(model(tokens, mask=mask[None, None])[:, -1]).argmax())]
    return ids


def test_padding_within_a_prompt_is_not_seen() -> None:
    model = tiny(pad_token_id=4)
    prompts = [[7, 4, 4, 9, 60], [4, 4, 12], [33, 21], [8, 4]]
    expected = [uncached(model, ids, 20, hidden_id=4) for ids in prompts]
    engine = generator(model, max_new_tokens=20)
    assert engine.generate(prompts) == expected
    assert [engine.generate([prompt])[0] for prompt in prompts] == expected
    assert expected[0] != generator(tiny(), max_new_tokens=20).generate(prompts)[0], "the mask matters here"


def test_padding_that_the_model_writes_is_not_seen_either() -> None:
    free = generator(tiny(), max_new_tokens=20).generate([[7, 9, 60]])[0]
    model = tiny(pad_token_id=free[5])
    expected = uncached(model, [7, 9, 60], 20, hidden_id=free[5])
    assert generator(model, max_new_tokens=20).generate([[7, 9, 60]]) == [expected]
    assert expected != free


def test_a_token_that_pads_and_ends_texts_is_seen() -> None:
    prompts = [[7, 4, 4, 9, 60], [33, 21]]
    expected = generator(tiny(), eos=frozenset([4]), max_new_tokens=20).generate(prompts)
    assert generator(tiny(pad_token_id=4), eos=frozenset([4]), max_new_tokens=20).generate(prompts) == expected


def test_draws_name_the_prompt_not_its_place_in_a_batch() -> None:
    model = tiny()
    options: dict[str, Any] = {"do_sample": True, "top_k": 0, "temperature": 2.0, "max_new_tokens": 25}
    together = generator(model, seed=5, **options).generate(PROMPTS)
    engine = generator(model, seed=5, **options)
    assert [engine.generate([prompt], first_index=i)[0] for i, prompt in enumerate(PROMPTS)] == together
    assert generator(model, seed=6, **options).generate(PROMPTS) != together
    same = engine.generate([PROMPTS[0], PROMPTS[0]])
    assert same[0] != same[1], "two askings of one prompt are two draws"


def test_prompts_given_are_not_changed() -> None:
    prompts = [[1, 2], [3]]
    generator(tiny(), max_new_tokens=3).generate(prompts)
    assert prompts == [[1, 2], [3]]


def test_a_repetition_penalty_is_that_of_transformers() -> None:
    theirs, ours = pair("llama")
    options: dict[str, Any] = {"max_new_tokens": 40, "repetition_penalty": 1.3}
    expected = theirs.generate(torch.tensor([PROMPTS[2]]), do_sample=False, **options)
    assert generator(ours, **options).generate([PROMPTS[2]]) == expected.tolist()


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_the_compiled_step_gives_the_tokens_of_the_eager_one() -> None:
    model = tiny(num_layers=1)
    expected = generator(model, max_new_tokens=12).generate(PROMPTS)
    engine = generator(model, max_new_tokens=12, compile=True)
    assert engine.generate(PROMPTS) == expected
    assert engine.generate(PROMPTS[::-1]) == expected[::-1], "nothing of the last batch is left in the cache"


def test_without_a_compiler_it_runs_eagerly_and_says_so_once(caplog: pytest.LogCaptureFixture) -> None:
    import torch._inductor.config

    torch.compiler.reset()
    model = tiny(num_layers=1, intermediate_size=48)
    expected = generator(model, max_new_tokens=5).generate(PROMPTS)
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}):
        assert generator(model, max_new_tokens=5, compile=True).generate(PROMPTS) == expected
    notices = [record for record in caplog.records if "eagerly" in record.getMessage()]
    assert len(notices) == 1
