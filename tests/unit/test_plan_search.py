"""``parallel_mode: 2``: layouts that fit, ordered by estimated time, and the keys that ask for the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from config_tasks import load

from runformer.config import Task
from runformer.config.layout import SearchOptions
from runformer.errors import ConfigError
from runformer.models.families import resolve_options
from runformer.plan import with_best_layout
from runformer.plan.memory import training_memory

PLAN = ("--dry_run", "True")
LARGE = """\
run_mode: train
model:
  model_config:
    type: LlamaConfig
    vocab_size: 32000
    hidden_size: 4096
    intermediate_size: 11008
    num_layers: 32
    num_heads: 32
    seq_length: 2048
    compute_dtype: bfloat16
runner_config: {batch_size: 1, gradient_accumulation_steps: 4}
use_parallel: True
"""
SEARCH = "parallel: {parallel_mode: 2}\nparallel_config: {data_parallel: 16}\ncontext: {max_device_memory: %s}\n"


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)


def yaml_in(task: Task) -> str:
    _, block = task.notices[-1].split("the same in YAML:\n")
    return "".join(f"{line[2:]}\n" for line in block.splitlines())


def bytes_of(task: Task) -> int:
    assert task.train is not None
    options = resolve_options(task.model)
    return sum(training_memory(task.model, options, task.train, 2048, task.parallel, "cpu").values())


@pytest.mark.parametrize("memory", ["500GB", "80GB", "32GB", "24GB"])
def test_the_layout_fits_and_its_keys_give_the_same_task(tmp_path: Path, memory: str) -> None:
    asked = load(tmp_path, LARGE + SEARCH % memory, *PLAN)
    assert asked.search == SearchOptions(16, int(memory[:-2]) * 2**30)
    found = with_best_layout(asked)
    assert found.search is None
    assert found.parallel.devices == 16
    assert found.global_batch_size == asked.global_batch_size == 64
    assert bytes_of(found) <= 0.9 * int(memory[:-2]) * 2**30
    model, _ = LARGE.split("runner_config")
    pasted = load(tmp_path, model + yaml_in(found), *PLAN)
    assert pasted.parallel == found.parallel
    assert pasted.global_batch_size == 64


@pytest.mark.parametrize("memory", ["500GB", "24GB"])
def test_what_a_search_does_not_choose_stays_as_written(tmp_path: Path, memory: str) -> None:
    more = "recompute_config: {select_recompute: {feed_forward.mul: True, norm.norm: True}}\n"
    search = "parallel: {parallel_mode: 2, gradient_reduce_dtype: bfloat16}\n" + SEARCH.split("\n", 1)[1] % memory
    search = search.replace("data_parallel: 16", "data_parallel: 16, gradient_aggregation_group: 3, vocab_emb_dp: True")
    found = with_best_layout(load(tmp_path, LARGE + search + more, *PLAN))
    kept = found.parallel
    assert (kept.recompute_products, kept.recompute_norms) == (True, True)
    assert (kept.gradient_groups, kept.reduce_dtype) == ((3, "bfloat16") if kept.replicas > 1 else (None, None))
    assert kept.copies_embedding == (kept.tensor > 1)
    model, _ = LARGE.split("runner_config")
    assert load(tmp_path, model + yaml_in(found), *PLAN).parallel == kept
    assert not any("is not used" in notice for notice in found.notices)


def test_what_a_search_chooses_is_named_where_it_was_written(tmp_path: Path) -> None:
    more = "recompute_config: {recompute: True, select_recompute: [1, 1]}\n"
    search = SEARCH.replace("data_parallel: 16", "data_parallel: 16, use_seq_parallel: True, micro_batch_num: 4")
    task = load(tmp_path, LARGE + search % "80GB" + more, *PLAN)
    (notice,) = (notice for notice in task.notices if "finds the layout by itself" in notice)
    expected = "parallel_config.{use_seq_parallel, micro_batch_num}, recompute_config.{recompute, select_recompute}"
    assert f"{expected} is not used" in notice
    assert not task.parallel.recompute_products


def test_what_costs_time_is_taken_only_where_memory_is_short(tmp_path: Path) -> None:
    text = LARGE.replace("steps: 4", "steps: 64") + SEARCH
    roomy, short = (with_best_layout(load(tmp_path, text % memory, *PLAN)) for memory in ("500GB", "24GB"))
    assert (roomy.parallel.zero, roomy.parallel.recompute) == (0, False)
    assert bytes_of(replace(short, parallel=roomy.parallel)) > 24 * 2**30


def test_no_layout_fits(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no layout fits; data .* needs .* GiB of a device") as caught:
        with_best_layout(load(tmp_path, LARGE + SEARCH % "1GB", *PLAN))
    assert "context.max_device_memory" in str(caught.value.hint)


def test_rows_that_no_layout_takes(tmp_path: Path) -> None:
    text = LARGE.replace("num_heads: 32", "num_heads: 1").replace("num_layers: 32", "num_layers: 1")
    text = text.replace("seq_length: 2048", "seq_length: 2047").replace("steps: 4", "steps: 1")
    search = SEARCH.replace("data_parallel: 16", "data_parallel: 1, model_parallel: 16") % "80GB"
    with pytest.raises(ConfigError, match="no layout over 16 devices takes 1 rows a step"):
        with_best_layout(load(tmp_path, text + search, *PLAN))


@pytest.mark.parametrize("written", ["58", "GB", "a lot", "0GB", "1.2.3GB"])
def test_a_size_that_is_none(tmp_path: Path, written: str) -> None:
    with pytest.raises(ConfigError, match=r"context.max_device_memory must be a size such as 58GB"):
        load(tmp_path, LARGE + SEARCH % f"'{written}'", *PLAN)


def test_only_training_is_searched_for(tmp_path: Path) -> None:
    task = load(tmp_path, LARGE.replace("run_mode: train", "run_mode: predict") + SEARCH % "80GB", *PLAN)
    assert task.search is None
    assert task.parallel.data == 16
