"""What the schema says about keys: unknown, misplaced, of the wrong type, without effect, refused."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest
from config_tasks import DATA, MINIMAL, MODEL, load

from runformer.config.problems import Place, Report, nearest
from runformer.config.schema import find_slot, section_in, slots_of
from runformer.config.sections import Config
from runformer.config.task import Task
from runformer.errors import ConfigError


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.delenv("RANK_SIZE", raising=False)


def error_of(folder: Path, text: str, *arguments: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(folder, text, *arguments)
    assert caught.value.exit_code == 78
    return str(caught.value)


def all_sections(section: type = Config) -> set[type]:
    inner = {section_in(slot.hint) for slot in slots_of(section).values()} - {None}
    variants = {kind for slot in slots_of(section).values() for kind in (slot.key.variants or {}).values()}
    found = {section, *variants}
    for kind in inner:
        assert kind is not None
        found |= all_sections(kind)
    return found


def task_fields(kind: type = Task, prefix: str = "") -> set[str]:
    import typing

    found = set()
    for name, hint in typing.get_type_hints(kind).items():
        found.add(f"{prefix}{name}")
        for member in typing.get_args(hint) or (hint,):
            if dataclasses.is_dataclass(member):
                found |= task_fields(member, f"{prefix}{name}.")  # type: ignore[arg-type]
    return found


def test_every_key_has_a_meaning_and_a_true_task_field_or_a_reason() -> None:
    known = task_fields()
    sections = all_sections()
    assert len(sections) >= 20
    for section in sections:
        for name, slot in slots_of(section).items():
            assert slot.key.meaning.endswith("."), (section, name)
            if slot.key.role == "sets":
                assert slot.key.about in known, (section, name, slot.key.about)
            elif slot.key.role != "group":
                assert slot.key.about, (section, name)


def test_an_unknown_key_gets_position_path_nearest_key_and_its_meaning(tmp_path: Path) -> None:
    message = error_of(tmp_path, MINIMAL + "runner_config:\n  epoch: 2\n")
    assert message == (
        "task.yaml:12:3: runner_config.epoch is not a known key: "
        "did you mean 'epochs'? (Number of passes over the dataset, in all.)"
    ).replace("task.yaml:12", f"task.yaml:{MINIMAL.count(chr(10)) + 2}")


def test_all_problems_are_reported_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = "sead: 1\nrun_mode: train\nrunner_config: {epochs: two, batch_size: 0}\ncontext: [1]\n" + DATA + MODEL
    lines = error_of(tmp_path, text).splitlines()
    assert lines[0] == "task.yaml: 4 problems"
    assert lines[1].startswith("  task.yaml:1:1: sead is not a known key: did you mean 'seed'?")
    assert lines[2] == "  task.yaml:3:25: runner_config.epochs must be an integer, not the text 'two'"
    assert lines[3] == "  task.yaml:3:42: runner_config.batch_size must be at least 1, not 0"
    assert lines[4] == "  task.yaml:4:10: context must be a group of keys, not a list"


def test_a_key_in_the_wrong_section_is_sent_to_the_right_one(tmp_path: Path) -> None:
    assert "weight_decay is not a known key: it belongs to optimizer" in error_of(
        tmp_path, MINIMAL + "weight_decay: 1\n"
    )
    text = MINIMAL + "runner_config: {seed: 3}\n"
    assert "runner_config.seed is not a known key: it belongs to the top level" in error_of(tmp_path, text)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("seed: true", "seed must be an integer, not true"),
        ("seed: 1.5", "seed must be an integer, not 1.5"),
        ("seed: -1", "seed must be at least 0, not -1"),
        ("seed: 99999999999", "seed must be at most 4294967295, not 99999999999"),
        ("use_parallel: 'Flase'", "use_parallel must be True or False, not the text 'Flase'"),
        ("resume_training: 3.5", None),
        ("resume_training: [a]", "resume_training must be True or False or text, not a list"),
        ("output_dir: {a: 1}", "output_dir must be text, not a group of keys"),
        ("output_dir: false", "output_dir must be text, not false"),
        ("optimizer: {betas: [0.9, x]}", "optimizer.betas must be a list, each item a number, not a list"),
        ("optimizer: {betas: [0.9, 1.5]}", "optimizer.betas must be at most 1, not 1.5"),
        ("optimizer: {eps: .nan}", "optimizer.eps must be a number, not .nan"),
        ("optimizer: {eps: .inf}", "optimizer.eps must be finite, not inf"),
        (f"optimizer: {{eps: {10**400}}}", "optimizer.eps must be a number, not 1000"),
        (f"seed: {10**400}", "seed must be an integer, not 1000"),
        ("runner_config: {epochs: 1e300}", "runner_config.epochs must be an integer, not 1e300"),
        (f"grouped_lr_schedule: {10**400}", "grouped_lr_schedule cannot be 1000"),
        (f"grouped_lr_schedule: 0x{'f' * 5000}", "grouped_lr_schedule cannot be '0xfff"),
        ("use_parallel: fals", "use_parallel must be True or False, not the text 'fals'; did you mean False?"),
        ("use_parallel: 0", "use_parallel must be True or False, not 0"),
        ("lr_schedule: {type: CosineWithWarmUpLR, learning_rate: '1e-5'}", "must be a number, not the text '1e-5'"),
        ("runner_wrapper: {scale_sense: 0}", "runner_wrapper.scale_sense must be more than 0, not 0.0"),
        ("runner_wrapper: {scale_sense: {type: DynamicLossScale}}", "did you mean 'DynamicLossScaleUpdateCell'?"),
        ("callbacks: {a: 1}", "callbacks must be a list"),
        (
            "callbacks: [{type: CheckpointMonitr}]",
            "callbacks[0].type is 'CheckpointMonitr', which is not known: did you",
        ),
        ("callbacks: [{prefix: x}]", "callbacks[0] needs a 'type'"),
        (
            "callbacks: [{type: CheckpointMonitor, prefx: x}]",
            "callbacks[0].prefx is not a known key: did you mean 'pre",
        ),
    ],
)
def test_types_and_bounds(tmp_path: Path, line: str, expected: str | None) -> None:
    if expected is None:
        (tmp_path / "output/checkpoint").mkdir(parents=True)
        assert load(tmp_path, f"{MINIMAL}{line}\n").load.resume_name == line.partition(": ")[2]
    else:
        assert expected in error_of(tmp_path, f"{MINIMAL}{line}\n")


def test_numbers_may_be_text_and_whole_floats_integers(tmp_path: Path) -> None:
    text = MINIMAL + "output_dir: 2024\ntrainer: {model_name: 1.50}\nrunner_config: {epochs: 2.0}\n"
    task = load(tmp_path, text)
    assert task.output_dir == tmp_path / "2024"
    assert task.model.name == "1.50"
    assert task.train is not None
    assert task.train.epochs == 2


def test_items_of_a_list_become_what_the_list_holds(tmp_path: Path) -> None:
    (tmp_path / "2024").touch()
    (tmp_path / "1.50").touch()
    text = MINIMAL.replace("rows.mindrecord", "[2024, 1.50]") + "optimizer: {betas: [0, 0.5]}\n"
    task = load(tmp_path, text.replace("    num_heads", "    eos_token_id: [2.0, 3]\n    num_heads"))
    assert task.train is not None
    assert task.train.data.paths == (tmp_path / "2024", tmp_path / "1.50")
    assert task.model.options is not None
    assert [type(token) for token in task.model.options.eos_token_ids] == [int, int]


def test_null_and_the_text_none_mean_not_given(tmp_path: Path) -> None:
    text = MINIMAL.replace(
        "    num_heads: 4\n", "    num_heads: 4\n    extend_method: 'None'\n    theta: None\n    n_kv_heads:\n"
    )
    assert load(tmp_path, text + "optimizer:\nseed: null\n") == load(tmp_path)


def test_one_key_under_two_names_must_agree(tmp_path: Path) -> None:
    same = MINIMAL.replace("num_layers: 2", "num_layers: 2\n    num_hidden_layers: 2")
    assert load(tmp_path, same) == load(tmp_path)
    other = MINIMAL.replace("num_layers: 2", "num_layers: 2\n    num_hidden_layers: 3")
    message = error_of(tmp_path, other)
    assert "model.model_config.num_layers and 'num_hidden_layers' are one key under two names" in message


def test_keys_without_effect_are_one_grouped_notice(tmp_path: Path) -> None:
    text = (
        MINIMAL
        + "context: {max_call_depth: 10000, jit_config: {jit_level: O1}, save_graphs: False}\nlayer_decay: 0.65\n"
    )
    notice = load(tmp_path, text).notices[-1]
    assert notice.splitlines() == [
        "keys without effect here",
        "  context.{max_call_depth, jit_config}: settings of Ascend's graph compiler, kernels and memory pool",
        "  layer_decay: used by vision models only",
    ]


def test_sections_of_the_other_run_mode_are_checked_but_not_talked_about(tmp_path: Path) -> None:
    train = "train_dataset: {prefetch_size: 3, data_loader: {type: HFDataLoader}}\noptimizer: {type: Muon}\n"
    task = load(tmp_path, f"run_mode: predict\nload_checkpoint: .\n{MODEL}{train}", "--predict_data", "hi")
    assert task.train is None
    assert not any("without effect" in notice for notice in task.notices)
    assert "train_dataset.prefetch is not" in error_of(
        tmp_path, f"run_mode: predict\n{MODEL}train_dataset: {{prefetch: 3}}\n", "--predict_data", "hi"
    )


@pytest.mark.parametrize(
    "line",
    [
        "lr_scale: True",
    ],
)
def test_what_cannot_be_done_is_refused_with_its_reason(tmp_path: Path, line: str) -> None:
    assert " cannot be " in error_of(tmp_path, f"{MINIMAL}{line}\n")


@pytest.mark.parametrize("line", ["do_eval: False", "only_save_strategy: false", "adapter_id: ''", "modal_type: text"])
def test_what_is_off_is_not_refused(tmp_path: Path, line: str) -> None:
    assert load(tmp_path, f"{MINIMAL}{line}\n") == load(tmp_path)


def test_a_problem_behind_an_alias_is_said_once(tmp_path: Path) -> None:
    text = MINIMAL.replace("train_dataset:", "train_dataset: &d") + "train_dataset_task: {dataset_config: *d}\n"
    message = error_of(tmp_path, text.replace("  data_loader:", "  prefetch: 1\n  data_loader:"))
    assert message.count("prefetch is not a known key") == 1


def test_places_and_nearest_names() -> None:
    report = Report("a.yaml")
    report.record("a", "a", Place("a.yaml", 3, 1))
    assert report.place("a.b.c") == Place("a.yaml", 3, 1)
    assert report.place("b") is None
    assert str(report.failure("b", "is wrong")) == "a.yaml: b is wrong"
    assert nearest("NUM_LAYER", ["num_heads", "num_layers"]) == "num_layers"
    assert nearest("zzz", ["num_heads"]) is None
    assert find_slot(Config, "model.model_config.rope_theta") is find_slot(Config, "model.model_config.theta")
    assert find_slot(Config, "model.nothing.here") is None


def test_loading_a_task_imports_no_torch(tmp_path: Path) -> None:
    load(tmp_path)
    code = (
        "import sys; from runformer.config import load_task; load_task(['--config', 'task.yaml']);"
        "heavy = {'torch', 'numpy', 'transformers', 'rich', 'jinja2', 'tokenizers'} & set(sys.modules);"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
