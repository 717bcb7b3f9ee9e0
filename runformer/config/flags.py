"""The command line of ``run_mindformer.py``: MindFormers' flags, and ``--a.b.c value`` for any key of the task file."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NoReturn

from runformer.config.overrides import Override
from runformer.config.problems import Place, nearest
from runformer.config.schema import find_slot, paths_of, slots_of
from runformer.config.sections import Config
from runformer.config.yaml_file import Node, Scalar, parse_value
from runformer.errors import UsageError

_MORE_HELP = "run_mindformer.py --help lists every flag"
_RUN_MODES = ("train", "finetune", "predict", "eval")


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text.lower() == "true"


def _boolean_or_name(text: str) -> bool | str:
    return text.lower() == "true" if text.lower() in ("true", "false") else text


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be an integer, not {text!r}") from None


def _mode(text: str) -> int:
    if text not in ("0", "1"):
        raise argparse.ArgumentTypeError(f"must be 0 (compiled) or 1 (eager), not {text!r}")
    return int(text)


def _run_mode(text: str) -> str:
    if text not in _RUN_MODES:
        near = nearest(text, _RUN_MODES)
        suggestion = f"; did you mean {near!r}?" if near else ""
        raise argparse.ArgumentTypeError(f"must be {', '.join(_RUN_MODES)}, not {text!r}{suggestion}")
    return text


@dataclass(frozen=True, slots=True)
class Flag:
    """One named flag: the key that it sets (empty: none), and how its text is read."""

    name: str
    path: str
    read: Callable[[str], Scalar] = str
    many: bool = False
    help: str = ""
    also: str = ""  # another key that it sets


_GROUPS: dict[str, tuple[Flag, ...]] = {
    "basic": (
        Flag("config", "", help="The task file; looked for here, in the repository, then in the register path."),
        Flag("run_mode", "run_mode", _run_mode),
        Flag("mode", "context.mode", _mode),
        Flag("device_target", "context.device_target"),
        Flag("device_id", "context.device_id", _integer),
        Flag("use_parallel", "use_parallel", _boolean),
        Flag("output_dir", "output_dir"),
        Flag("seed", "seed", _integer),
        Flag("register_path", "", help="Folder of a recipe and its plug-ins, such as research/mistral."),
        Flag("trust_remote_code", "trust_remote_code", _boolean),
        Flag("remote_save_url", "remote_save_url"),
        Flag("profile", "profile", _boolean),
        Flag("options", "", many=True, help="Overrides as key=value; --key value says the same."),
        Flag("dry_run", "", _boolean, help="Whether the run is only planned: nothing starts, plan.json is written."),
    ),
    "weights": (
        Flag("load_checkpoint", "load_checkpoint"),
        Flag("resume_training", "resume_training", _boolean_or_name),
        Flag("src_strategy_path_or_dir", "src_strategy_path_or_dir"),
        Flag("strategy_load_checkpoint", "parallel.strategy_ckpt_load_file"),
        Flag("auto_trans_ckpt", "auto_trans_ckpt", _boolean),
        Flag("transform_process_num", "transform_process_num", _integer),
        Flag("only_save_strategy", "only_save_strategy", _boolean),
    ),
    "training": (
        Flag("train_dataset_dir", "train_dataset.data_loader.dataset_dir"),
        Flag("eval_dataset_dir", "eval_dataset.data_loader.dataset_dir"),
        Flag("do_eval", "do_eval", _boolean),
        Flag("epochs", "runner_config.epochs", _integer),
        Flag("batch_size", "runner_config.batch_size", _integer),
        Flag("gradient_accumulation_steps", "runner_config.gradient_accumulation_steps", _integer),
        Flag("sink_mode", "runner_config.sink_mode", _boolean),
        Flag(
            "num_samples",
            "train_dataset.data_loader.num_samples",
            _integer,
            also="eval_dataset.data_loader.num_samples",
        ),
    ),
    "inference": (
        Flag("predict_data", "input_data", many=True),
        Flag("modal_type", "modal_type", many=True),
        Flag("predict_batch_size", "predict_batch_size", _integer),
        Flag("adapter_id", "adapter_id", many=True),
        Flag("do_sample", "model.model_config.do_sample", _boolean),
        Flag("chat", "", _boolean, help="Whether prompts are put into the model's chat template."),
    ),
}
_FLAGS = tuple(flag for flags in _GROUPS.values() for flag in flags)
_NAMES = ("help", *(flag.name for flag in _FLAGS), "debug")
# Ours, not the original's. They yield to its flags where an abbreviation could mean either.
OWN_FLAGS = ("dry_run", "chat", "debug")
_EMPTY_MEANS_ABSENT = ("train_dataset_dir", "eval_dataset_dir")


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A command line, read: what is no key of the task file by name, everything else as overrides in order."""

    config: str
    register_path: str | None
    chat: bool
    dry_run: bool
    overrides: tuple[Override, ...]


class _Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises instead of ending the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=_MORE_HELP)


def make_parser() -> argparse.ArgumentParser:
    """The parser of the named flags; help texts are the meanings that the schema gives."""
    parser = _Parser(
        prog="run_mindformer.py",
        usage="%(prog)s --config FILE --run_mode MODE [flags] [--a.b.c VALUE ...]",
        description="Pre-train, fine-tune or run a language model as a MindFormers task file says.",
        epilog="--a.b.c VALUE sets any other key of the task file, such as --runner_config.sink_mode False.",
        allow_abbrev=True,
    )
    for title, flags in _GROUPS.items():
        group = parser.add_argument_group(title)
        for flag in flags:
            group.add_argument(
                f"--{flag.name}",
                type=flag.read,
                nargs="+" if flag.many else None,
                required=flag.name == "config",
                help=_help(flag).replace("%", "%%"),
                metavar=flag.read.__name__.strip("_").upper() if flag.read is not str else "TEXT",
            )
    # Only the front door acts on it, before and after the arguments are read.
    parser.add_argument("--debug", action="store_true", help="Show the traceback of an error.")
    return parser


def _help(flag: Flag) -> str:
    slot = find_slot(Config, flag.path) if flag.path else None
    if slot is None:
        return flag.help
    caveat = {"no effect": " No effect here", "refused": " Not supported"}.get(slot.key.role)
    return slot.key.meaning + (f"{caveat}: {slot.key.about}." if caveat else "")


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Read the arguments after the program's name.

    Raises:
        UsageError: for a flag that is unknown, ambiguous, without value or with one of the wrong type.
    """
    named, generic = _split(argv)
    values = vars(make_parser().parse_args(named))
    given = [flag for flag in _FLAGS if _is_set(flag, values[flag.name])]
    overrides = [_named(flag, path, values[flag.name]) for flag in given for path in (flag.path, flag.also) if path]
    overrides += [_option(text) for text in values["options"] or ()]
    overrides += [_generic(name, text) for name, text in generic]
    return CommandLine(
        config=values["config"],
        register_path=values["register_path"],
        chat=bool(values["chat"]),
        dry_run=bool(values["dry_run"]),
        overrides=tuple(overrides),
    )


def _is_set(flag: Flag, value: object) -> bool:
    return bool(flag.path) and value is not None and not (value == "" and flag.name in _EMPTY_MEANS_ABSENT)


def _named(flag: Flag, path: str, value: Scalar | list[str]) -> Override:
    place = Place.flag(f"--{flag.name}")
    if isinstance(value, list) and len(value) > 1:
        return Override(path, Node([Node(item, place, item) for item in value], place))
    single = value[0] if isinstance(value, list) else value
    return Override(path, Node(single, place, str(single)))


def _option(text: str) -> Override:
    path, separator, value = text.partition("=")
    if not separator or not path:
        raise UsageError(f"--options {text}: must be key=value", hint=_MORE_HELP)
    return _generic(path, value)


def _generic(path: str, text: str) -> Override:
    if not all(path.split(".")):
        raise UsageError(f"--{path}: a part of the name is empty", hint="write it as --section.key value")
    return Override(path, parse_value(text, Place.flag(f"--{path}")))


def _split(argv: Sequence[str]) -> tuple[list[str], list[tuple[str, str]]]:
    """The arguments for the parser, and the overrides ``(path, text)`` among them."""
    named: list[str] = []
    generic: list[tuple[str, str]] = []
    arguments = list(argv)
    while arguments:
        argument = arguments.pop(0)
        name, separator, text = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            named.append(argument)
            continue
        if any(known.startswith(name) for known in _NAMES):
            named.append(f"--{_in_full(name)}{separator}{text}")
            continue
        _check_top_level(name)
        if not separator:
            if not arguments or arguments[0].startswith("--"):
                raise UsageError(f"--{name} needs a value", hint=_MORE_HELP)
            text = arguments.pop(0)
        generic.append((name, text))
    return named, generic


def _in_full(name: str) -> str:
    """An abbreviation that one of the original's flags explains, written out; anything else as it is."""
    found = [known for known in _NAMES if known.startswith(name) and known not in OWN_FLAGS]
    return found[0] if name not in _NAMES and len(found) == 1 else name


def _check_top_level(name: str) -> None:
    """A name without a dot that is no flag may be a key of the top level; anything else is a misspelling."""
    keys = slots_of(Config)
    if "." in name or name in keys:
        return
    near = next(paths_of(Config, name), None) or nearest(name, [flag.name for flag in _FLAGS] + list(keys))
    raise UsageError(f"unknown flag --{name}" + (f"; did you mean --{near}?" if near else ""), hint=_MORE_HELP)
