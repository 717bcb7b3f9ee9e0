"""The way from a command line to a Task: find the file, lay the overrides over it, check it, translate it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from runformer.config.families import node_at, refuse_other_families
from runformer.config.find import find_config, find_register_path
from runformer.config.flags import CommandLine, parse_command_line
from runformer.config.overrides import apply
from runformer.config.paths import absolute, display
from runformer.config.problems import Report, nearest
from runformer.config.resolve_device import check_one_device, compile_mode, device_options
from runformer.config.resolve_model import load_options, model_task
from runformer.config.resolve_predict import predict_task, tokenizer_options
from runformer.config.resolve_train import train_task
from runformer.config.schema import Reader
from runformer.config.sections import Config
from runformer.config.task import RunMode, Task
from runformer.config.yaml_file import Node, load_tree
from runformer.errors import ConfigError

_RUN_MODES: tuple[RunMode, ...] = ("train", "finetune", "predict")
_UNSUPPORTED_RUN_MODES = ("eval", "predict_with_train_model", "export")


def load_task(argv: Sequence[str]) -> Task:
    """Everything that one command asks for. Imports no torch and writes nothing.

    Of two values for one key the later of these wins: ``base_config`` files, the task file, the named flags,
    ``--options``, the ``--a.b.c value`` overrides.

    Args:
        argv: the arguments after the program's name.

    Raises:
        UsageError: if the command line is wrong.
        ConfigError: if the task file, an override or a path that they name is wrong; it lists every problem.
        SystemExit: after ``--help``.
    """
    command = parse_command_line(argv)
    register_path = find_register_path(command.register_path)
    path, where = find_config(command.config, register_path)
    report = Report(source=display(path))
    if where:
        report.notice(f"task file: {display(path)}, found in {where}")
    root = load_tree(Path(display(path)))
    for override in command.overrides:
        apply(root, override)
    refuse_other_families(root)
    run_mode = _run_mode(root)
    config = Reader(Config, report, "predict" if run_mode == "predict" else "train").section(Config, root)
    report.raise_problems()
    return _resolve(config, run_mode, path, command, report)


def _run_mode(root: Node) -> RunMode:
    node = node_at(root, "run_mode")
    name = node.value if node else None
    if node is None or name is None:
        raise ConfigError(f"{root.place}: run_mode is not set", hint="add --run_mode train, finetune or predict")
    if name in _UNSUPPORTED_RUN_MODES:
        raise ConfigError(f"{node.place}: run_mode {name} is not built yet", hint="use train, finetune or predict")
    for known in _RUN_MODES:
        if name == known:
            return known
    near = nearest(str(name), _RUN_MODES)
    suggestion = f": did you mean {near!r}?" if near else ""
    raise ConfigError(f"{node.place}: run_mode must be train, finetune or predict, not {name!r}{suggestion}")


def _resolve(config: Config, run_mode: RunMode, path: Path, command: CommandLine, report: Report) -> Task:
    training = run_mode != "predict"
    check_one_device(config, report)
    device = device_options(config, report)
    load = report.attempt(lambda: load_options(config, report, training=training))
    model = report.attempt(lambda: model_task(config, report, training=training))
    report.raise_problems()
    assert model is not None
    assert load is not None
    train = report.attempt(lambda: train_task(config, model, report)) if training else None
    predict = None if training else report.attempt(lambda: predict_task(config, model, report, chat=command.chat))
    tokenizer = tokenizer_options(config, model, report, predicting=not training)
    report.raise_problems()
    return Task(
        run_mode=run_mode,
        config_file=path,
        output_dir=absolute(config.output_dir),
        seed=config.seed,
        device=device,
        compile=compile_mode(config, report),
        model=model,
        tokenizer=tokenizer,
        load=load,
        train=train,
        predict=predict,
        notices=report.notices(),
    )
