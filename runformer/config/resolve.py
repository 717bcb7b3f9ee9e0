"""The way from a command line to a Task: find the file, lay the overrides over it, check it, translate it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from runformer.config.families import node_at, refuse_other_families
from runformer.config.find import find_config, find_register_path
from runformer.config.flags import CommandLine, parse_command_line
from runformer.config.launched import launched
from runformer.config.overrides import apply
from runformer.config.paths import absolute, display
from runformer.config.plugins import find_plugins
from runformer.config.problems import Report, cut, nearest
from runformer.config.resolve_device import compile_mode, device_options
from runformer.config.resolve_model import load_options, model_task
from runformer.config.resolve_parallel import parallel_options, search_options
from runformer.config.resolve_predict import predict_task, tokenizer_options
from runformer.config.resolve_train import evaluation_task, train_task
from runformer.config.schema import Mode, Reader, spell
from runformer.config.sections import Config
from runformer.config.task import RunMode, Task
from runformer.config.yaml_file import Node, load_tree
from runformer.errors import ConfigError

_RUN_MODES: tuple[RunMode, ...] = ("train", "finetune", "eval", "predict")
_UNSUPPORTED_RUN_MODES = ("predict_with_train_model", "export")
_CHOICE = "train, finetune, eval or predict"


def load_task(argv: Sequence[str]) -> Task:
    """Everything that one command asks for. Writes nothing, and imports no torch unless a plug-in does.

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
    root = load_tree(Path(display(path)))
    for override in command.overrides:
        apply(root, override)
    report = Report(source=display(path), planning=command.dry_run or _is_true(root, "only_save_strategy"))
    if where:
        report.notice(f"task file: {display(path)}, found in {where}")
    files = find_plugins(root, register_path, report)
    refuse_other_families(root)
    run_mode = _run_mode(root)
    config = Reader(Config, report, *_reader_modes(root, run_mode)).section(Config, root)
    report.raise_problems()
    return replace(_resolve(config, run_mode, path, command, report), plugins=files)


def _is_true(root: Node, path: str) -> bool:
    node = node_at(root, path)
    return node is not None and node.value is True


def _run_mode(root: Node) -> RunMode:
    node = node_at(root, "run_mode")
    name = node.value if node else None
    if node is None or name is None:
        raise ConfigError(f"{root.place}: run_mode is not set", hint=f"add --run_mode {_CHOICE}")
    if name in _UNSUPPORTED_RUN_MODES:
        raise ConfigError(f"{node.place}: run_mode {name} is not built yet", hint=f"use {_CHOICE}")
    for known in _RUN_MODES:
        if name == known:
            return known
    near = nearest(str(name), _RUN_MODES)
    suggestion = f": did you mean {near!r}?" if near else ""
    shown = cut(repr(name)) if isinstance(name, str) else spell(node)
    raise ConfigError(f"{node.place}: run_mode must be {_CHOICE}, not {shown}{suggestion}")


def _reader_modes(root: Node, run_mode: RunMode) -> tuple[Mode, ...]:
    if run_mode in ("eval", "predict"):
        return (run_mode,)
    return ("train", "eval") if _is_true(root, "do_eval") else ("train",)


def _resolve(config: Config, run_mode: RunMode, path: Path, command: CommandLine, report: Report) -> Task:
    training, predicting = run_mode in ("train", "finetune"), run_mode == "predict"
    place = launched(planning=report.planning)
    device = device_options(config, place, report)
    load = report.attempt(lambda: load_options(config, report, training=training))
    model = report.attempt(lambda: model_task(config, report, training=training))
    if model is None or load is None:  # the rest hangs on them
        report.raise_problems()
    assert model is not None
    assert load is not None
    parallel = parallel_options(config, model, place, report)
    search = search_options(config, place, report)
    train = report.attempt(lambda: train_task(config, model, parallel, report)) if training else None
    evaluating = run_mode == "eval" or (training and config.do_eval)
    evaluation = report.attempt(lambda: evaluation_task(config, model, report)) if evaluating else None
    predict = report.attempt(lambda: predict_task(config, model, report, chat=command.chat)) if predicting else None
    tokenizer = tokenizer_options(config, model, report, predicting=predicting)
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
        evaluation=evaluation,
        parallel=parallel,
        search=search,
        notices=report.notices(),
        without_effect=report.without_effect(),
        not_built=tuple(report.unbuilt),
        dry_run=command.dry_run,
        only_save_strategy=bool(config.only_save_strategy),
        to_fill_in=report.to_fill_in,
    )
