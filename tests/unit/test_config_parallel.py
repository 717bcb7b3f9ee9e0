"""How work is laid over devices: modes, sizes, and the rules that hold before anything starts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from config_tasks import MINIMAL, MODEL, load
from hypothesis import given
from hypothesis import strategies as st

from runformer.config import Task
from runformer.config.layout import ParallelOptions
from runformer.config.sizes import Sizes, nearest_plans
from runformer.config.task import ModelOptions
from runformer.errors import ConfigError

PLAN = ("--dry_run", "True")
OPTIONS = ModelOptions(512, 64, 172, 4, 4, 2, 16, 48)


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WORLD_SIZE", "RANK_SIZE"):
        monkeypatch.delenv(name, raising=False)


def parallel_text(config: str, *more: str) -> str:
    return "".join(
        (MINIMAL, "use_parallel: True\n", f"parallel_config: {{{config}}}\n", *(f"{line}\n" for line in more))
    )


def error_of(folder: Path, text: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments)
    assert caught.value.exit_code == 78
    return str(caught.value)


def notices(task: Task) -> str:
    return "\n".join(task.notices)


def test_alone_everything_is_one_whatever_the_section_says(tmp_path: Path) -> None:
    text = parallel_text("data_parallel: 8, model_parallel: 2, pipeline_stage: 2, micro_batch_num: 4")
    task = load(tmp_path, text, "--use_parallel", "False")
    assert task.parallel == ParallelOptions()
    assert task.train is not None
    assert task.train.accumulation_steps == 1
    assert notices(task).count("is not used, since the run is on one device") == 1
    assert load(tmp_path, text + "parallel: {parallel_mode: STAND_ALONE}\n").parallel == ParallelOptions()


def test_a_plan_without_a_launcher_is_for_as_many_devices_as_it_names(tmp_path: Path) -> None:
    text = parallel_text(
        "data_parallel: 2, model_parallel: 2, pipeline_stage: 2, micro_batch_num: 6, use_seq_parallel: True, "
        "gradient_aggregation_group: 4, vocab_emb_dp: True",
        "parallel: {enable_parallel_optimizer: True}",
        "runner_config: {batch_size: 3, gradient_accumulation_steps: 5}",
        "micro_batch_interleave_num: 2",
    )
    task = load(tmp_path, text, *PLAN)
    assert task.parallel == ParallelOptions(
        2, 2, 1, 2, sequence_parallel=True, copies_embedding=True, zero=1, gradient_groups=4
    )
    assert task.parallel.devices == 8
    # In a pipeline: batch_size × data_parallel × micro_batch_num × interleave.
    assert task.global_batch_size == 3 * 2 * 6 * 2
    assert "gradient_accumulation_steps: 5 is not used in a pipeline" in notices(task)


def test_without_a_pipeline_batches_are_accumulated(tmp_path: Path) -> None:
    text = parallel_text(
        "data_parallel: 4, micro_batch_num: 16",
        "runner_config: {batch_size: 3, gradient_accumulation_steps: 5}",
        "micro_batch_interleave_num: 2",
    )
    task = load(tmp_path, text, *PLAN)
    assert task.global_batch_size == 3 * 4 * 5 * 2
    assert "micro_batch_num: 16 is not used without pipeline stages" in notices(task)
    alone = load(tmp_path, text, "--use_parallel", "False")
    assert alone.global_batch_size == 3 * 5


@pytest.mark.parametrize("mode", ["0", "DATA_PARALLEL", "data_parallel"])
def test_in_data_parallel_mode_the_world_size_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    text = parallel_text("data_parallel: 2, model_parallel: 4", f"parallel: {{parallel_mode: {mode}}}")
    assert load(tmp_path, text, *PLAN).parallel == ParallelOptions(data=2)
    monkeypatch.setenv("WORLD_SIZE", "16")
    task = load(tmp_path, text, *PLAN)
    assert task.parallel == ParallelOptions(data=16)
    assert notices(task).count("since parallel_mode is data_parallel") == 1


def test_the_product_must_be_the_number_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = parallel_text("data_parallel: 4, model_parallel: 2")
    message = error_of(tmp_path, text)
    assert "task.yaml:15:18: parallel_config asks for data_parallel 4 × model_parallel 2 × context" in message
    assert "8 devices, and this run has 1 device: --use_parallel False runs on one, or start 8 proc" in message
    monkeypatch.setenv("RANK_SIZE", "4")
    message = error_of(tmp_path, text, *PLAN)
    assert "8 devices, and this run has 4 devices; the nearest plans that fit: data_parallel 2 × mod" in message
    assert load(tmp_path, text, *PLAN, "--parallel_config.data_parallel", "2").parallel.devices == 4


def launch(monkeypatch: pytest.MonkeyPatch, processes: int) -> None:
    """Let this process be rank 0 of several."""
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", str(processes))


def test_copies_of_a_model_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = parallel_text("data_parallel: 2")
    launch(monkeypatch, 2)
    task = load(tmp_path, text)
    assert task.parallel.devices == 2
    task.require_built()
    assert "a launcher started 2: start one, or set it to True" in error_of(tmp_path, text, "--use_parallel", "False")


def test_a_split_model_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    launch(monkeypatch, 2)
    task = load(tmp_path, parallel_text("model_parallel: 2"))
    assert task.parallel == ParallelOptions(tensor=2)
    task.require_built()


@pytest.mark.parametrize(
    ("scheduler", "chunks", "expected"),
    [
        ("1f1b", 1, "1F1B"),
        ("gpipe", 1, "GPipe"),
        ("1f1b", 2, "Interleaved1F1B"),
        ("gpipe", 2, "LoopedBFS"),
        ("zero_bubble_v", 2, "ZBVZeroBubble"),
    ],
)
def test_a_pipeline_has_a_schedule(tmp_path: Path, scheduler: str, chunks: int, expected: str) -> None:
    text = parallel_text(
        "pipeline_stage: 2, micro_batch_num: 4", f"parallel: {{pipeline_config: {{pipeline_scheduler: {scheduler}}}}}"
    )
    changes = ("--model.model_config.pp_interleave_num", str(chunks), "--model.model_config.num_layers", "4")
    task = load(tmp_path, text, *PLAN, *changes)
    assert task.parallel == ParallelOptions(pipeline=2, chunks=chunks, schedule=expected)


@pytest.mark.parametrize(
    ("offset", "expected"), [("0", None), ("1", (-1, 2)), ("[0, 1]", (0, 1)), ("[1, 0]", (1, 0)), ("[[1, 0]]", (1, 0))]
)
def test_offset_moves_layers_between_stages(tmp_path: Path, offset: str, expected: tuple[int, ...] | None) -> None:
    text = parallel_text("pipeline_stage: 2, micro_batch_num: 4")
    changes = ("--model.model_config.num_layers", "5", "--model.model_config.offset", offset)
    assert load(tmp_path, text, *PLAN, *changes).parallel.extra_layers == expected


def test_operators_are_recomputed_by_regular_expression(tmp_path: Path) -> None:
    """As published recipes name them; a reshape looks at the same memory, and has nothing to recompute."""
    names = (r"feed_forward\.mul", r"feed_forward\.w1\.activation\.silu", r"feed_forward\.w1\.reshape")
    published = "{" + ", ".join(f"'{name}': [1, 0]" for name in names) + "}"
    cases = [
        (published, {"recompute_products": (1, 0)}),
        ("True", {"recompute_products": True}),
        ("[1, 1]", {"recompute_products": (1, 1)}),
        ("{'.*_norm': True}", {"recompute_norms": True}),
        ("{'.*': True}", {"recompute_products": True, "recompute_norms": True}),
        ("{'feed_forward.mul': False}", {}),
        ("False", {}),
    ]
    for value, expected in cases:
        line = f"recompute_config: {{select_recompute: {value}}}"
        found = load(tmp_path, parallel_text("pipeline_stage: 2, micro_batch_num: 4", line), *PLAN).parallel
        assert found == ParallelOptions(pipeline=2, **expected), value
    line = f"recompute_config: {{select_recompute: {published}}}"
    task = load(tmp_path, parallel_text("pipeline_stage: 2, micro_batch_num: 4", line), *PLAN)
    assert notices(task).count(r"select_recompute: feed_forward\.w1\.reshape has no effect; only these") == 1


@pytest.mark.parametrize(
    ("value", "expected"),
    [("False", False), ("True", True), ("[2, 1]", (2, 1)), ("[[1, 0], [0, 1]]", (1, 0, 0, 1))],
)
def test_layers_are_recomputed(tmp_path: Path, value: str, expected: bool | tuple[int, ...]) -> None:
    text = parallel_text("pipeline_stage: 2, micro_batch_num: 4", f"recompute_config: {{recompute: {value}}}")
    assert load(tmp_path, text, *PLAN).parallel.recompute == expected
    alone = load(tmp_path, MINIMAL + "recompute_config: {recompute: True}\n")
    assert alone.parallel == ParallelOptions(recompute=True)


@pytest.mark.parametrize(
    ("settings", "more", "expected"),
    [
        ("", "", {"zero": 1}),
        ("gradient_accumulation_shard: False, parallel_optimizer_threshold: 64", "", {"zero": 1}),
        ("gradient_accumulation_shard: True", "", {"zero": 2}),
        ("optimizer_level: level2", "", {"zero": 2}),
        ("optimizer_level: level3", "", {"zero": 3}),
        ("", "recompute_config: {parallel_optimizer_comm_recompute: True}", {"zero": 3}),
        ("optimizer_weight_shard_size: -1", "", {"zero": 1}),
        ("optimizer_weight_shard_size: 4", "", {"zero": 1, "sharers": 4}),
        ("optimizer_weight_shard_size: 8", "", {"zero": 1}),
        ("optimizer_weight_shard_size: 3", "", {"zero": 1}),
    ],
)
def test_what_copies_share_out(tmp_path: Path, settings: str, more: str, expected: dict[str, Any]) -> None:
    section = f"parallel: {{enable_parallel_optimizer: True, parallel_optimizer_config: {{{settings}}}}}"
    task = load(tmp_path, parallel_text("data_parallel: 8", section, more), *PLAN)
    assert task.parallel == ParallelOptions(data=8, **expected)
    assert ("3 does not divide the 8 copies" in notices(task)) == ("shard_size: 3" in settings)
    without = section.replace("enable_parallel_optimizer: True", "enable_parallel_optimizer: False")
    assert load(tmp_path, parallel_text("data_parallel: 8", without, more), *PLAN).parallel == ParallelOptions(data=8)


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        (
            "pipeline_stage: 1, data_parallel: 2, micro_batch_num: 4",
            "parallel: {pipeline_config: {pipeline_scheduler: zero_bubble_v}}",
            None,
        ),
        (
            "pipeline_stage: 2, micro_batch_num: 4",
            "parallel: {pipeline_config: {pipeline_scheduler: zero_bubble_v}}",
            "pipeline_scheduler is zero_bubble_v: 4 stages, more than the model's 2 layers",
        ),
    ],
)
def test_a_v_needs_two_stages_a_device(tmp_path: Path, config: str, more: str, expected: str | None) -> None:
    if expected is None:
        assert load(tmp_path, parallel_text(config, more), *PLAN).parallel == ParallelOptions(data=2)
    else:
        assert expected in error_of(tmp_path, parallel_text(config, more), *PLAN)


def test_a_v_and_shared_weights_exclude_each_other(tmp_path: Path) -> None:
    section = (
        "parallel: {pipeline_config: {pipeline_scheduler: zero_bubble_v}, enable_parallel_optimizer: True, "
        "parallel_optimizer_config: {gradient_accumulation_shard: True}}"
    )
    text = parallel_text("data_parallel: 2, pipeline_stage: 2, micro_batch_num: 4", section)
    message = error_of(tmp_path, text, *PLAN, "--model.model_config.num_layers", "4")
    assert "pipeline_scheduler is zero_bubble_v, which computes gradients of weights later" in message
    assert "take 1f1b" in message
    wrong = error_of(
        tmp_path, text, *PLAN, "--model.model_config.num_layers", "8", "--model.model_config.pp_interleave_num", "3"
    )
    assert "pp_interleave_num must be 2 with pipeline_scheduler zero_bubble_v" in wrong


@pytest.mark.parametrize(
    ("config", "more", "expected"),
    [
        ("pipeline_stage: 4, micro_batch_num: 4", "", "pipeline_stage is 4, more than the model's 2 layers"),
        ("model_parallel: 8", "", "model_parallel is 8, more than the model's 4 attention heads"),
        ("pipeline_stage: 2", "", "parallel_config.micro_batch_num is 1, fewer than the 2 stages"),
        ("context_parallel: 5", "", "context_parallel is 5, which does not divide seq_length 48"),
        (
            "context_parallel: 4, model_parallel: 2, context_parallel_algo: ulysses_cp",
            "",
            "context_parallel times model_parallel is 8, more than the 4 heads ulysses_cp splits",
        ),
        (
            "context_parallel: 4, context_parallel_algo: hybrid_cp, ulysses_degree_in_cp: 3",
            "",
            "ulysses_degree_in_cp is 3, which does not divide 4",
        ),
        ("context_parallel_algo: ulyses_cp", "", "did you mean 'ulysses_cp'?"),
        (
            "data_parallel: 2",
            "parallel: {full_batch: False, dataset_strategy: [[4, 1], [4, 1]]}",
            "dataset_strategy splits rows into 4, but parallel_config.data_parallel is 2",
        ),
        ("data_parallel: 2", "parallel: {parallel_mode: 3}", "is 3 (HYBRID_PARALLEL), in which a model splits itself"),
        (
            "pipeline_stage: 2, micro_batch_num: 3",
            "recompute_config: {select_recompute: {'feed_forward(': True}}",
            "recompute_config.select_recompute has 'feed_forward(', which is no regular expression",
        ),
        (
            "pipeline_stage: 2, micro_batch_num: 4",
            "recompute_config: {select_recompute: {'.*_norm': [1, 0], 'norm': True}}",
            "select_recompute has '.*_norm' and 'norm' for the same tensors, and different layers: give them once",
        ),
        (
            "",
            "recompute_config: {recompute: sometimes}",
            "recompute_config.recompute must be True, False, or numbers of layers",
        ),
        ("data_parallel: 2", "parallel: {parallel_mode: 7}", "must be 0 (DATA_PARALLEL), 1 (SEMI_AUTO_PARALLEL)"),
        ("data_parallel: 2", "parallel: {parallel_mode: SEMI_AUTO}", "did you mean 'SEMI_AUTO_PARALLEL'?"),
        ("data_parallel: 4", "transform_process_num: 3", "transform_process_num is 3, which does not divide the 4 dev"),
        ("data_parallel: 0", "", "parallel_config.data_parallel must be at least 1, not 0"),
        (
            "data_parallel: 2",
            "recompute_config: {recompute: [1, 1]}",
            "recompute_config.recompute has 2 numbers, more than the 1 stages",
        ),
        (
            "data_parallel: 2",
            "recompute_config: {select_recompute: {x: [1, 1]}}",
            "recompute_config.select_recompute has 2 numbers for 'x', more than",
        ),
    ],
)
def test_rules(tmp_path: Path, config: str, more: str, expected: str) -> None:
    message = error_of(tmp_path, parallel_text(config, more), *PLAN)
    assert expected in message
    assert message.startswith(("task.yaml:", "task.yaml: "))


@pytest.mark.parametrize(
    ("config", "model", "expected"),
    [
        (
            "model_parallel: 4, context_parallel: 2, use_seq_parallel: True",
            ("seq_length", "60"),
            "use_seq_parallel shares positions out over 8 devices, which do not divide seq_length 60",
        ),
        (
            "pipeline_stage: 2, micro_batch_num: 4",
            ("pp_interleave_num", "2"),
            "pp_interleave_num is 2: 4 stages, more than the model's 2 layers",
        ),
        (
            "pipeline_stage: 2, micro_batch_num: 3",
            ("pp_interleave_num", "2"),
            "micro_batch_num is 3, which 2 devices do not divide",
        ),
        (
            "pipeline_stage: 2, micro_batch_num: 3",
            ("offset", "1"),
            "offset is 1, and leaves the first stage none of its 1 layers",
        ),
    ],
)
def test_rules_of_splitting(tmp_path: Path, config: str, model: tuple[str, str], expected: str) -> None:
    change = (f"--model.model_config.{model[0]}", model[1])
    assert expected in error_of(tmp_path, parallel_text(config), *PLAN, *change)


def test_rules_of_predicting(tmp_path: Path) -> None:
    text = f"run_mode: predict\nuse_parallel: True\nload_checkpoint: .\ninput_data: [a, b, c]\n{MODEL}"
    message = error_of(tmp_path, text + "parallel_config: {context_parallel: 2}\n", *PLAN)
    assert "parallel_config.context_parallel must be 1 to predict" in message
    assert "micro_batch_num" not in message
    message = error_of(tmp_path, text + "predict_batch_size: 3\nparallel_config: {data_parallel: 2}\n", *PLAN)
    assert "predict_batch_size is 3, which parallel_config.data_parallel 2 does not divide" in message


@pytest.mark.parametrize(
    ("offset", "expected"),
    [
        ("[-1, 1]", None),
        ("0", None),
        ("[0]", "model.model_config.offset has 1 numbers, not one for each of the 2 stages"),
        ("[1, 1]", "offset sums to 2; 2 layers in 2 stages need 0"),
        ("[-2, 2]", "offset leaves a stage without layers: 1 a stage before it"),
    ],
)
def test_offsets_move_layers_between_stages(tmp_path: Path, offset: str, expected: str | None) -> None:
    text = parallel_text("pipeline_stage: 2, micro_batch_num: 2")
    text = text.replace(
        "    num_layers: 2\n", f"    num_layers: {4 if expected is None else 2}\n    offset: {offset}\n"
    )
    if expected is None:
        assert load(tmp_path, text, *PLAN).parallel.pipeline == 2
    else:
        assert expected in error_of(tmp_path, text, *PLAN)


def test_the_nearest_plan_keeps_what_a_device_holds() -> None:
    assert nearest_plans(Sizes(8, 2, 1, 2), 16, OPTIONS)[0] == Sizes(4, 2, 1, 2)
    assert nearest_plans(Sizes(1, 8, 1, 1), 8, None)[0] == Sizes(1, 8, 1, 1)
    assert nearest_plans(Sizes(1, 8, 1, 1), 8, OPTIONS)[0].model == 4  # four heads


sizes = st.builds(Sizes, *[st.integers(1, 64)] * 4)


@given(sizes, st.integers(1, 512))
def test_every_plan_that_is_offered_fits(asked: Sizes, devices: int) -> None:
    plans = nearest_plans(asked, devices, OPTIONS)
    assert plans
    assert len(set(plans)) == len(plans) <= 3
    for plan in plans:
        assert math.prod(plan) == devices
        assert plan.model <= OPTIONS.num_heads
        assert plan.pipeline <= OPTIONS.num_layers
