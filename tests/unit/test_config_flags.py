"""The command line: MindFormers' named flags, abbreviations, overrides, and what a mistake ends in."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import pytest
from config_tasks import MINIMAL, load
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from runformer.config.flags import OWN_FLAGS, CommandLine, make_parser, parse_command_line
from runformer.config.schema import plain
from runformer.errors import ConfigError, UsageError

# Every argument of run_mindformer.py 1.6, with a value that it takes.
ORIGINAL_FLAGS = {
    "config": "a.yaml",
    "mode": "0",
    "device_id": "1",
    "device_target": "CPU",
    "run_mode": "train",
    "do_eval": "False",
    "train_dataset_dir": "d",
    "eval_dataset_dir": "d",
    "predict_data": "hello",
    "modal_type": "text",
    "predict_batch_size": "2",
    "adapter_id": "x",
    "load_checkpoint": "c",
    "src_strategy_path_or_dir": "s",
    "auto_trans_ckpt": "true",
    "transform_process_num": "2",
    "only_save_strategy": "false",
    "resume_training": "True",
    "strategy_load_checkpoint": "s",
    "remote_save_url": "u",
    "seed": "3",
    "use_parallel": "FALSE",
    "profile": "False",
    "options": "seed=4",
    "epochs": "2",
    "batch_size": "2",
    "gradient_accumulation_steps": "2",
    "sink_mode": "tRuE",
    "num_samples": "5",
    "output_dir": "o",
    "register_path": "r",
    "do_sample": "True",
    "trust_remote_code": "False",
}


def parse(*arguments: str) -> CommandLine:
    return parse_command_line(["--config", "a.yaml", *arguments])


def values(*arguments: str) -> dict[str, object]:
    return {override.path: plain(override.node) for override in parse(*arguments).overrides}


def usage_error(*arguments: str) -> str:
    with pytest.raises(UsageError) as caught:
        parse(*arguments)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_every_flag_of_the_original_is_known() -> None:
    assert len(ORIGINAL_FLAGS) == 33
    line = parse_command_line([part for name, text in ORIGINAL_FLAGS.items() for part in (f"--{name}", text)])
    assert (line.config, line.register_path, line.chat, line.dry_run) == ("a.yaml", "r", False, False)
    set_paths = {override.path: plain(override.node) for override in line.overrides}
    assert set_paths["train_dataset.data_loader.dataset_dir"] == "d"
    assert set_paths["use_parallel"] is False
    assert set_paths["runner_config.sink_mode"] is True
    assert set_paths["model.model_config.do_sample"] is True
    assert set_paths["train_dataset.data_loader.num_samples"] == set_paths["eval_dataset.data_loader.num_samples"] == 5
    assert set_paths["seed"] == 4  # --options comes after the named flags
    assert len(line.overrides) == 33 - len({"config", "register_path"}) + 1  # num_samples: of both datasets


def test_the_flags_are_the_original_s_and_ours() -> None:
    """The whole set: a flag that comes or goes changes what people's commands mean."""
    known = {name.removeprefix("--") for action in make_parser()._actions for name in action.option_strings}
    assert known == set(ORIGINAL_FLAGS) | set(OWN_FLAGS) | {"help", "-h"}
    assert set(OWN_FLAGS) == {"dry_run", "chat", "debug"}


def test_no_abbreviation_of_the_original_became_ambiguous() -> None:
    original = {*ORIGINAL_FLAGS, "help"}
    for name in ORIGINAL_FLAGS:
        for short in (name[:length] for length in range(1, len(name))):
            meant = [full for full in original if full.startswith(short)]
            if len(meant) == 1 and short not in original:
                assert parse_command_line([f"--{short}", ORIGINAL_FLAGS[name], *_rest(name)]) == parse_command_line(
                    [f"--{name}", ORIGINAL_FLAGS[name], *_rest(name)]
                ), short


def _rest(name: str) -> list[str]:
    return [] if name == "config" else ["--config", "a.yaml"]


def test_our_own_flags_may_be_abbreviated_where_nothing_else_is_meant() -> None:
    assert parse("--dr", "True").dry_run
    assert parse("--cha", "true").chat
    assert "ambiguous option: --d" in usage_error("--d", "1")


@pytest.mark.parametrize(
    ("arguments", "path", "value"),
    [
        (("--train_data", "x"), "train_dataset.data_loader.dataset_dir", "x"),
        (("--train_dataset=x",), "train_dataset.data_loader.dataset_dir", "x"),
        (("--resume", "step_3"), "resume_training", "step_3"),
        (("--resume_training", "FALSE"), "resume_training", False),
        (("--predict_data", "a", "b c"), "input_data", ["a", "b c"]),
        (("--a.b.c", "1.0"), "a.b.c", 1.0),
        (("--a.b=x=y",), "a.b", "x=y"),
        (("--a.b", "-1"), "a.b", -1),
        (("--a.b", "None"), "a.b", None),
        (("--a.b=",), "a.b", None),
        (("--a.b", "[1, {c: 2}]"), "a.b", [1, {"c": 2}]),
        (("--pretrained_model_dir", "/m"), "pretrained_model_dir", "/m"),
        (("--options", "a.b=True", "c.d=x=y"), "c.d", "x=y"),
        (("--options", "a.b=True", "c.d=x=y"), "a.b", True),
    ],
)
def test_values(arguments: tuple[str, ...], path: str, value: object) -> None:
    assert values(*arguments)[path] == value


def test_an_empty_dataset_flag_keeps_the_file_s_value() -> None:
    assert values("--train_dataset_dir", "") == {}
    assert values("--load_checkpoint", "") == {"load_checkpoint": ""}


def test_generic_overrides_come_last_and_the_last_of_two_wins() -> None:
    assert values("--runner_config.epochs", "5", "--epochs", "2", "--options", "runner_config.epochs=3") == {
        "runner_config.epochs": 5
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--epochs", "x"), "--epochs: must be an integer, not 'x'"),
        (("--epochs", "1.5"), "must be an integer"),
        (("--use_parallel", "1"), "--use_parallel: must be True or False, not '1'"),
        (("--mode", "2"), "must be 0 (compiled) or 1 (eager)"),
        (("--run_mode", "trian"), "did you mean 'train'?"),
        (("--pre", "x"), "ambiguous option: --pre"),
        (("--epochs",), "expected one argument"),
        (("--a.b",), "--a.b needs a value"),
        (("--a.b", "--seed", "1"), "--a.b needs a value"),
        (("--a..b", "1"), "a part of the name is empty"),
        (("--.b", "1"), "a part of the name is empty"),
        (("--batchsize", "1"), "unknown flag --batchsize; did you mean --batch_size?"),
        (("--weight_decay", "1"), "did you mean --optimizer.weight_decay?"),
        (("stray",), "unrecognized arguments: stray"),
        (("--options", "novalue"), "must be key=value"),
    ],
)
def test_mistakes_end_in_a_usage_error(arguments: tuple[str, ...], expected: str) -> None:
    assert expected in usage_error(*arguments)


def test_the_config_flag_is_required() -> None:
    with pytest.raises(UsageError, match="--config"):
        parse_command_line([])


def test_help_groups_the_flags_and_says_what_has_no_effect(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse_command_line(["--help"])
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    assert text.index(" basic: ") < text.index(" weights: ") < text.index(" training: ") < text.index(" inference: ")
    assert all(f"--{name} " in text for name in ORIGINAL_FLAGS)
    assert "No effect here: a service of Huawei's cloud." in text
    assert "Not supported: only text can be predicted." in text


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(alphabet="-=.abcepochs_ 1[{", max_size=10), max_size=5))
def test_any_arguments_parse_or_end_in_a_usage_error(arguments: list[str]) -> None:
    if any((word.startswith("--h") and "--help".startswith(word)) or word.startswith("-h") for word in arguments):
        return
    with contextlib.suppress(UsageError):
        assert parse(*arguments).config


ODD_VALUES = [
    *("1.0", "1e-5", "1e400", "inf", "-inf", "nan", "None", "null", "", " ", "-1", "-x", "0x_", "9" * 5000, "x" * 5000),
    *("True", "flase", "x=y", "a: b", "'quoted", "*a", "&a", "!!int x", "\0", "\ud800", "\x85", "ü", "#", "~nobody/x"),
    *(
        "[1",
        "[1, 'a']",
        "[[1e400]]",
        '{"a": {"b": [1, None]}}',
        "{a: *b}",
        "[" * 50,
        "{type: x}",
        "[{type: x}]",
        '"\\0"',
    ),
]
GENERIC = [
    "seed",
    "model",
    "context",
    "callbacks",
    "callbacks.0.type",
    "eval_callbacks",
    "parallel_config.data_parallel",
]
GENERIC += [
    "optimizer.eps",
    "optimizer.betas",
    "train_dataset",
    "train_dataset.input_columns",
    "model.model_config.theta",
]
# The command line took a value away that the file does not give either, so that nothing stands anywhere.
TAKEN_AWAY = re.compile(r"(is not set|does not describe a model)")


def said_by(folder: Path, *arguments: str) -> str:
    """What loading a task with these arguments ends in: a message, or nothing."""
    try:
        load(folder, MINIMAL + "callbacks: [{type: MFLossMonitor}]\n", *arguments)
    except (ConfigError, UsageError) as error:
        return error.message
    return ""


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_of_any_flag_is_taken_or_refused_at_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(tmp_path)
    value = data.draw(st.sampled_from(ODD_VALUES) | st.text(max_size=12))
    name = data.draw(st.sampled_from([*GENERIC, *(set(ORIGINAL_FLAGS) - {"config", "register_path", "options"})]))
    forms = [[f"--{name}", value], [f"--{name}={value}"]]
    if name in GENERIC:
        forms.append(["--options", f"{name}={value}"])
    said = said_by(tmp_path, *data.draw(st.sampled_from(forms)))
    assert len(said) < 5000 + len(value)
    assert not said or f"--{name}" in said or TAKEN_AWAY.search(said) or "task.yaml:" in said or value[:1] == "-"


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_misspelt_override_is_never_let_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.chdir(tmp_path)
    path = data.draw(st.sampled_from([path for path in GENERIC if ".0." not in path]))
    at, letter = data.draw(st.integers(1, len(path))), data.draw(st.sampled_from("aeioxz_"))
    wrong = path[:at] + letter + path[at:]
    assume(not any(name.startswith(wrong) for name in ORIGINAL_FLAGS))
    said = said_by(tmp_path, f"--{wrong}", "1")
    assert re.search(rf"--{wrong}\b", said)
    assert re.search(r"is not a known key|unknown flag", said)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--runner_config.epoch", "runner_config.epoch is not a known key: did you mean 'epochs'?"),
        ("--runner_confg.epochs", "runner_confg is not a known key: did you mean 'runner_config'?"),
        ("--runner_config.weight_decay", "is not a known key: it belongs to optimizer"),
        ("--model.model_config.num_layer", "is not a known key: did you mean 'num_layers'?"),
        (
            "--callbacks.0.per_print_time",
            "callbacks[0].per_print_time is not a known key: did you mean 'per_print_times'?",
        ),
    ],
)
def test_a_misspelt_override_gets_a_suggestion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert f"command line: {flag}: " in said_by(tmp_path, flag, "3")
    assert expected in said_by(tmp_path, flag, "3")


def test_an_unknown_key_of_an_override_is_a_config_error_at_the_flag(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MINIMAL, "--runner_config.epoch", "2")
    message = "command line: --runner_config.epoch: runner_config.epoch is not a known key: did you mean 'epochs'?"
    assert str(caught.value).startswith(message)
    with pytest.raises(ConfigError, match=r"command line: --epochs: runner_config.epochs must be at least 1, not 0"):
        load(tmp_path, MINIMAL, "--epochs", "0")


def test_overrides_make_sections_reach_aliases_and_list_items(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = MINIMAL.replace("train_dataset:", "train_dataset: &d") + (
        "train_dataset_task: {dataset_config: *d}\ncallbacks:\n- type: CheckpointMonitor\n"
    )
    arguments = (
        "--callbacks.0.prefix",
        "x",
        "--optimizer.eps",
        "1e-5",
        "--train_dataset_task.dataset_config.seed",
        "7",
    )
    task = load(tmp_path, text, *arguments)
    assert task.train is not None
    assert task.train.save is not None
    assert (task.train.save.prefix, task.train.optimizer.eps, task.train.data.seed) == ("x", 1e-5, 7)


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--run_mode.a", "run_mode is the text 'train', so no key can be set inside it"),
        ("--callbacks.7.prefix", "callbacks is a list, so no key can be set inside it"),
    ],
)
def test_overrides_cannot_go_through_plain_values(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=expected):
        load(tmp_path, MINIMAL + "callbacks: []\n", flag, "1")


def test_an_override_under_an_alias_name_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    task = load(tmp_path, MINIMAL, "--model.model_config.num_hidden_layers", "5")
    assert task.model.options is not None
    assert task.model.options.num_layers == 5
