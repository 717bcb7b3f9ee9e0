"""From the training sections to TrainTask: data, batches, optimizer, schedule, loss scale, callbacks; the device."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from config_tasks import DATA, MINIMAL, MODEL, load

from runformer.config import (
    DataOptions,
    DeviceOptions,
    LossLineOptions,
    LossScaleOptions,
    MindRecordFiles,
    OptimizerOptions,
    SaveOptions,
    ScheduleOptions,
    Task,
    TrainTask,
)
from runformer.errors import ConfigError


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK_SIZE", raising=False)


def train_of(folder: Path, extra: str = "", *arguments: str) -> TrainTask:
    train = load(folder, MINIMAL + extra, *arguments).train
    assert train is not None
    return train


def error_of(folder: Path, text: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments)
    return str(caught.value)


def test_missing_sections_have_the_template_s_defaults(tmp_path: Path) -> None:
    assert train_of(tmp_path) == TrainTask(
        data=DataOptions(
            MindRecordFiles((tmp_path / "rows.mindrecord",)), ("input_ids",), "reference", 1, pad_token_id=0
        ),
        epochs=1,
        batch_size=1,
        accumulation_steps=1,
        optimizer=OptimizerOptions((0.9, 0.999), 1e-8, 0.0),
        schedule=ScheduleOptions(
            "CosineWithWarmUpLR", {"learning_rate": 5e-5, "lr_end": 0.0, "warmup_ratio": 0.0, "total_steps": -1.0}
        ),
        loss_scale=LossScaleOptions(1.0),
        max_grad_norm=1.0,
        save=None,
        loss_line=LossLineOptions(1, running_mean=False),
    )
    task = load(tmp_path)
    assert (task.seed, task.output_dir, task.compile) == (1, tmp_path / "output", "accelerator")
    assert task.device == DeviceOptions(None, 0)


def test_a_written_wrapper_replaces_the_template_whole(tmp_path: Path) -> None:
    written = train_of(tmp_path, "runner_wrapper: {type: MFTrainOneStepCell, scale_sense: 2}\n")
    assert (written.max_grad_norm, written.loss_scale) == (None, LossScaleOptions(2.0))
    assert train_of(tmp_path, "runner_wrapper: {use_clip_grad: True, max_grad_norm: 0.5}\n").max_grad_norm == 0.5
    only_measured = train_of(tmp_path, "runner_wrapper: {use_clip_grad: True, max_grad_norm: .inf}\n")
    assert only_measured.max_grad_norm == float("inf")


@pytest.mark.parametrize(
    ("scale", "expected"),
    [
        ("1.0", LossScaleOptions(1.0)),
        (
            "{type: DynamicLossScaleUpdateCell, loss_scale_value: 4096, scale_factor: 1, scale_window: 100000}",
            LossScaleOptions(4096.0, True, 1.0, 100000),
        ),
        ("{type: DynamicLossScaleUpdateCell}", LossScaleOptions(65536.0, True, 2.0, 1000)),
        ("{type: FixedLossScaleUpdateCell, loss_scale_value: 128}", LossScaleOptions(128.0, False)),
    ],
)
def test_loss_scales(tmp_path: Path, scale: str, expected: LossScaleOptions) -> None:
    assert train_of(tmp_path, f"runner_wrapper: {{scale_sense: {scale}}}\n").loss_scale == expected


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        ("{type: adamw, betas: [0.9, 0.95], weight_decay: 0.1}", OptimizerOptions((0.9, 0.95), 1e-8, 0.1)),
        ("{type: AdamW, beta1: 0.8, beta2: 0.95, eps: 1e-6}", OptimizerOptions((0.8, 0.95), 1e-6, 0.0)),
        ("{beta2: 0.95}", OptimizerOptions((0.9, 0.95))),
        ("{type: FP32StateAdamWeightDecay}", OptimizerOptions(eps=1e-6, bias_correction=False)),
        ("{type: FusedAdamW, eps: 1e-5}", OptimizerOptions(eps=1e-5)),
    ],
)
def test_adamw(tmp_path: Path, optimizer: str, expected: OptimizerOptions) -> None:
    assert train_of(tmp_path, f"optimizer: {optimizer}\n").optimizer == expected


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        (
            "optimizer: {type: came}",
            "optimizer.type is 'came'. Supported: AdamW, FusedAdamW, FP32StateAdamWeightDecay, AdamWeightDecay, and",
        ),
        ("optimizer: {betas: [0.9]}", "optimizer.betas must be two numbers, not 1"),
        ("optimizer: {betas: [1, 0.9]}", "optimizer.betas must be less than 1"),
        ("optimizer: {beta2: 1.0}", "optimizer.beta2 must be less than 1"),
        (
            "lr_schedule: {type: CosinWithWarmUpLR}",
            "lr_schedule.type is 'CosinWithWarmUpLR'; did you mean 'CosineWithWarmUp",
        ),
        ("lr_schedule: {learning_rate: 1}", "lr_schedule.type is not set"),
        ("lr_schedule: {type: polynomial, warmup_step: 3}", "did you mean 'warmup_steps'?"),
        ("runner_wrapper: {type: Strange}", "runner_wrapper.type is 'Strange'"),
    ],
)
def test_what_cannot_be_trained(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in error_of(tmp_path, f"{MINIMAL}{extra}\n")


def test_every_curve_of_the_original_keeps_its_parameters(tmp_path: Path, oracle_dir: Path) -> None:
    tables = json.loads((oracle_dir / "lr_tables" / "lr_tables.json").read_text())
    assert len(tables) == 27
    for table in tables:
        schedule = json.dumps({"type": table["type"], **table["params"]})
        expected = ScheduleOptions(table["type"], {name: float(value) for name, value in table["params"].items()})
        assert train_of(tmp_path, f"lr_schedule: {schedule}\n").schedule == expected


def test_where_the_learning_rate_comes_from(tmp_path: Path) -> None:
    rate = "lr_schedule: {type: polynomial, warmup_ratio: 0}\n"
    assert train_of(tmp_path, rate + "optimizer: {learning_rate: 3e-4}\n").schedule == ScheduleOptions(
        "PolynomialWithWarmUpLR", {"warmup_ratio": 0.0, "learning_rate": 3e-4}
    )
    alone = train_of(tmp_path, "optimizer: {learning_rate: 3e-4}\n").schedule
    assert (alone.kind, alone.parameters["learning_rate"]) == ("CosineWithWarmUpLR", 3e-4)
    assert "lr_schedule is not given: CosineWithWarmUpLR down to 0, as in MindFormers" in load(tmp_path).notices
    task = load(tmp_path, MINIMAL + rate)
    assert any("5e-05, as in MindFormers" in notice for notice in task.notices)


def test_callbacks(tmp_path: Path) -> None:
    extra = (
        "runner_config: {sink_mode: False}\ncallbacks:\n- {type: MFLossMonitor, per_print_times: 5}\n"
        "- {type: CheckpointMonitor, prefix: q, save_checkpoint_steps: 7, save_trainable_params: True}\n"
        "- {type: ObsMonitor, keep_last: False}\n"
    )
    task = load(tmp_path, MINIMAL + extra)
    assert task.train is not None
    assert task.train.save == SaveOptions("q", 7, trained=True)
    assert task.train.loss_line == LossLineOptions(5, running_mean=True)
    assert "callbacks[2] ObsMonitor: it uploads to Huawei's cloud" in task.notices[-1]
    assert train_of(tmp_path, "callbacks: [{type: CheckpointMonitor}]\n").save == SaveOptions()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ("save_checkpoint_seconds: 600", SaveOptions(every_steps=None, every_seconds=600)),
        ("save_checkpoint_seconds: 600, save_checkpoint_steps: 0", SaveOptions(every_steps=None, every_seconds=600)),
        ("save_checkpoint_seconds: 600, save_checkpoint_steps: 5", SaveOptions(every_steps=5)),
        ("save_checkpoint_seconds: 0", SaveOptions()),
        ("save_checkpoint_steps: 0", SaveOptions(every_steps=None)),
        ("keep_checkpoint_per_n_minutes: 30", SaveOptions(keep=None, keep_minutes=30)),
        ("keep_checkpoint_per_n_minutes: 30, keep_checkpoint_max: 2", SaveOptions(keep=2)),
        ("keep_checkpoint_max: 0", SaveOptions(keep=None)),
        ("integrated_save: True, async_save: True", SaveOptions(whole=True, behind=True)),
        ("save_network_params: True, remove_redundancy: True", SaveOptions(weights=True)),
    ],
)
def test_when_and_how_checkpoints_are_written(tmp_path: Path, keys: str, expected: SaveOptions) -> None:
    assert train_of(tmp_path, f"callbacks: [{{type: CheckpointMonitor, {keys}}}]\n").save == expected


def test_data_options(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        "rows.mindrecord", "rows.mindrecord\n    shuffle: False\n  input_columns: [a, b]\n  drop_remainder: False"
    )
    model = "    input_sliced_sig: True\n    pad_token_id: 9\n    ignore_token_id: -1\nseed: 5\n"
    data = load(tmp_path, text + model, "--num_samples", "3").train
    assert data is not None
    assert data.data == DataOptions(
        MindRecordFiles((tmp_path / "rows.mindrecord",)),
        ("a", "b"),
        None,
        5,
        3,
        False,
        already_shifted=True,
        pad_token_id=9,
        ignore_token_id=-1,
    )
    seeded = load(tmp_path, text + model, "--train_dataset.seed", "8").train
    assert seeded is not None
    assert seeded.data.seed == 8


def test_datasets_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "inner"
    folder.mkdir(parents=True)
    for name in ("x.mindrecord10", "x.mindrecord2", "x.mindrecord2.db", "notes.txt"):
        (folder / name).touch()
    (tmp_path / "set" / "a.mindrecord").touch()
    found = train_of(tmp_path, "", "--train_dataset_dir", "set").data.paths
    names = [str(path.relative_to(tmp_path)) for path in found]
    assert names == ["set/a.mindrecord", "set/inner/x.mindrecord2", "set/inner/x.mindrecord10"]
    listed = MINIMAL.replace("dataset_dir: rows.mindrecord", "dataset_files: [rows.mindrecord, set/a.mindrecord]")
    train = load(tmp_path, listed).train
    assert train is not None
    assert train.data.paths == (tmp_path / "rows.mindrecord", tmp_path / "set/a.mindrecord")


@pytest.mark.parametrize(
    ("text", "arguments", "expected"),
    [
        (
            MINIMAL,
            ("--train_dataset_dir", "gone"),
            "command line: --train_dataset_dir: train_dataset.data_loader.dataset_dir is",
        ),
        (MINIMAL, ("--train_dataset_dir", "~nobody-at-all/x"), "there is nothing at"),
        (MINIMAL, ("--train_dataset_dir", "x" * 5000), "there is nothing at"),
        (
            MINIMAL.replace("rows.mindrecord", "gone"),
            (),
            "task.yaml:5:18: train_dataset.data_loader.dataset_dir is 'gone'",
        ),
        (MINIMAL.replace("rows.mindrecord", "''"), (), "is not set: --train_dataset_dir PATH gives the dataset"),
        (f"run_mode: train\n{MODEL}", (), "train_dataset.data_loader.dataset_dir is not set"),
        (MINIMAL, ("--train_dataset_dir", "empty"), "no file in the folder empty has a name that ends in mindrecord"),
        (
            MINIMAL.replace("MindDataset", "HFDataLoder"),
            (),
            "data_loader.type is 'HFDataLoder'; did you mean 'HFDataLoader'? Supported: MindDataset",
        ),
    ],
)
def test_missing_datasets_name_path_key_and_flag(
    tmp_path: Path, text: str, arguments: tuple[str, ...], expected: str
) -> None:
    (tmp_path / "empty").mkdir()
    assert expected in error_of(tmp_path, text, *arguments)


def test_named_flags_reach_the_task(tmp_path: Path) -> None:
    arguments = "--epochs 4 --batch_size 3 --gradient_accumulation_steps 2 --sink_mode false --seed 11 --output_dir o"
    task = load(tmp_path, MINIMAL, *arguments.split())
    train = task.train
    assert train is not None
    assert (train.epochs, train.batch_size, train.accumulation_steps) == (4, 3, 2)
    assert (train.loss_line.running_mean, train.data.seed, task.seed, task.output_dir) == (True, 11, 11, tmp_path / "o")
    assert any("MindFormers sets it to 1 on one device" in notice for notice in task.notices)


@pytest.mark.parametrize(
    ("extra", "arguments", "device", "compiled"),
    [
        ("context: {device_target: Ascend, mode: 0}", (), DeviceOptions(None, 0), "accelerator"),
        ("context: {device_target: GPU, device_id: 2}", (), DeviceOptions(None, 2), "accelerator"),
        ("context: {device_target: cpu, mode: 1}", (), DeviceOptions("cpu", 0), "never"),
        ("context: {device_target: CPU}", ("--device_target", "Ascend"), DeviceOptions("npu", 0), "accelerator"),
        ("context: {mode: 1}", ("--device_target", "gpu", "--mode", "0"), DeviceOptions("cuda", 0), "always"),
        ("context: {mode: 0}", ("--mode", "1", "--device_id", "1"), DeviceOptions(None, 1), "never"),
    ],
)
def test_devices_and_compiling(
    tmp_path: Path, extra: str, arguments: tuple[str, ...], device: DeviceOptions, compiled: str
) -> None:
    task = load(tmp_path, f"{MINIMAL}{extra}\n", *arguments)
    assert (task.device, task.compile) == (device, compiled)
    assert any("is read as the best device" in notice for notice in task.notices) == (
        device.kind is None and "device_target" in extra
    )


def test_device_mistakes(tmp_path: Path) -> None:
    assert "must be Ascend, GPU or CPU, not 'Ascent'; did you mean 'Ascend'?" in error_of(
        tmp_path, MINIMAL, "--device_target", "Ascent"
    )
    assert "context.mode must be at most 1, not 2" in error_of(tmp_path, MINIMAL + "context: {mode: 2}\n")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (DATA + MODEL, "task.yaml:1:1: run_mode is not set"),
        ("run_mode: export\n", "task.yaml:1:11: run_mode export is not built yet"),
        ("run_mode: fintune\n", "must be train, finetune, eval or predict, not 'fintune': did you mean 'finetune'?"),
        ("run_mode: [train]\n", "run_mode must be train, finetune, eval or predict"),
    ],
)
def test_run_modes(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in error_of(tmp_path, text)


def test_finetune_is_train_by_another_name(tmp_path: Path) -> None:
    def same(task: Task) -> Task:
        return dataclasses.replace(task, run_mode="train")

    finetune = load(tmp_path, MINIMAL, "--run_mode", "finetune")
    assert finetune.run_mode == "finetune"
    assert same(finetune) == load(tmp_path)
