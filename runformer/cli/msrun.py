"""``msrun [flags] SCRIPT ARGS…``: start a task's processes on this machine. ``msrun_ask`` asks after them."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from runformer.cli.msrun_ask import COMMANDS
from runformer.cli.report import reporting_errors
from runformer.errors import UsageError
from runformer.launch.command import split_order
from runformer.launch.options import LOOPBACK, LaunchOptions
from runformer.launch.run import launch

_LAST_PORT = 65535


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint="msrun --help lists every flag")


def _boolean(text: str) -> bool:
    if text not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"must be True or False, not {text!r}")
    return text == "True"


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(text: str) -> int:
        number = int(text) if text.removeprefix("-").isdecimal() and text.isascii() and len(text) < 12 else None
        if number is None or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return number

    return read


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number of seconds, not {text!r}")
    return seconds


def _ranks(text: str) -> tuple[int, ...] | Literal["all"]:
    if text == "-1":
        return "all"
    words = text.split(",")
    if not all(word.isascii() and word.isdecimal() and len(word) < 9 for word in words):
        raise argparse.ArgumentTypeError(f"must be ranks such as 0,3, or -1 for all, not {text!r}")
    return tuple(sorted({int(word) for word in words}))


def _cores(text: str) -> bool | Mapping[int, tuple[int, ...]]:
    """True, False, or ``{"device0": ["0-3", "8-11"], …}`` as the original takes it."""
    if text in ("True", "False"):
        return text == "True"
    try:
        content = json.loads(text)
        return {int(name.removeprefix("device")): _core_list(spans) for name, spans in content.items()}
    except (ValueError, AttributeError, TypeError) as error:
        message = f'must be True, False, or a JSON such as {{"device0": ["0-3"]}}, not {text!r}'
        raise argparse.ArgumentTypeError(message) from error


def _core_list(spans: Sequence[str]) -> tuple[int, ...]:
    cores: set[int] = set()
    for span in [spans] if isinstance(spans, str) else spans:
        first, _, last = span.partition("-")
        cores |= set(range(int(first), min(int(last or first), 1 << 16) + 1))
    return tuple(sorted(cores))


def make_parser() -> argparse.ArgumentParser:
    """The parser of ``msrun``: the original's flags, then ours."""
    parser = _Parser(
        prog="msrun",
        description="Start the processes of a task on this machine, and end them together.",
        epilog="Ask after a launch: " + " | ".join(f"msrun {name} LOG_DIR" for name in COMMANDS),
        allow_abbrev=False,
    )
    many = _whole(1, 1 << 20)
    add = parser.add_argument
    add("--worker_num", type=many, default=8, help="workers on all machines (8)")
    add("--local_worker_num", type=many, default=8, help="workers on this machine (8)")
    add("--master_addr", default=LOOPBACK, help="address or name of the machine with node rank 0 (127.0.0.1)")
    add("--master_port", type=_whole(1, _LAST_PORT), default=8118, help="port of its store (8118)")
    add("--node_rank", type=_whole(-1, 1 << 20), default=-1, help="this machine's number; -1: as they come (-1)")
    add("--log_dir", default="output/msrun_log", help="folder of the logs (output/msrun_log)")
    add(
        "--join", type=_boolean, default=False, help="stay, and show what happens; False: run in the background (False)"
    )
    add("--cluster_time_out", type=_seconds, default=600, help="seconds to wait for all machines (600)")
    add("--bind_core", type=_cores, default=False, help="give each worker cores of its own; or a JSON of them (False)")
    add("--worker_log_name", default="", help="name of workers' logs; {ip} and {hostname} are filled in (worker)")
    add("--tail_worker_log", type=_ranks, default=None, help="ranks to show whole with --join; -1: all (rank 0)")
    add(
        "--sim_level",
        type=_whole(-1, 3),
        default=-1,
        help="of no effect: --dry_run True of the task plans without running",
    )
    add("--sim_rank_id", type=_whole(-1, 1 << 20), default=-1, help="of no effect, as --sim_level")
    add("--rank_table_file", default="", help="of no effect: a topology of Ascend devices")
    add("--fork_server", type=_boolean, default=True, help="import torch once and fork the workers (True)")
    add("--hang_timeout", type=_seconds, default=600, help="seconds that ranks may disagree; 0: for ever (600)")
    add("--max_restarts", type=_whole(0, 1000), default=0, help="starts after a failure, each after progress (0)")
    add("--grace_period", type=_seconds, default=30, help="seconds that training gets to save when told to end (30)")
    add("--order", default=None, metavar="COMMAND", help="the command as one string, split as a shell does")
    add("command", nargs=argparse.REMAINDER, metavar="SCRIPT ARGS…", help="what each worker runs")
    return parser


def parse(argv: Sequence[str]) -> tuple[LaunchOptions, list[str]]:
    """The launch that a command line asks for, and what to tell of flags without effect.

    Raises:
        UsageError: it is wrong.
    """
    values = make_parser().parse_args(argv)
    command = tuple(values.command)
    if values.order is not None:
        command = split_order(values.order) + command
    if not command:
        raise UsageError("there is no script to run", hint="msrun [flags] run_mindformer.py --config …")
    _check_numbers(values)
    options = LaunchOptions(
        command=command,
        world_size=values.worker_num,
        local_world_size=values.local_worker_num,
        master_addr=values.master_addr,
        master_port=values.master_port,
        node_rank=values.node_rank,
        log_dir=Path(values.log_dir),
        join=values.join,
        cluster_timeout=values.cluster_time_out,
        bind_core=values.bind_core,
        worker_log_name=values.worker_log_name,
        tail=values.tail_worker_log,
        fork_server=values.fork_server,
        hang_timeout=values.hang_timeout,
        max_restarts=values.max_restarts,
        grace_period=values.grace_period,
    )
    return options, _without_effect(values)


def _check_numbers(values: argparse.Namespace) -> None:
    workers, local = values.worker_num, values.local_worker_num
    if local > workers:
        raise UsageError(f"--local_worker_num is {local}, more than the {workers} of --worker_num")
    if workers % local:
        raise UsageError(f"--worker_num is {workers}, which is not a multiple of --local_worker_num {local}")
    if values.node_rank >= workers // local:
        raise UsageError(f"--node_rank is {values.node_rank}, and there are {workers // local} machines, from 0")


def _without_effect(values: argparse.Namespace) -> list[str]:
    given = {
        "--sim_level": values.sim_level >= 0,
        "--sim_rank_id": values.sim_rank_id >= 0,
        "--rank_table_file": bool(values.rank_table_file),
    }
    names = [name for name, there in given.items() if there]
    return [f"without effect here: {', '.join(names)}"] if names else []


def main(argv: Sequence[str]) -> int:
    """Launch, or ask after a launch; the exit code."""
    with reporting_errors(debug=False) as outcome:
        if argv and argv[0] in COMMANDS:
            return COMMANDS[argv[0]](argv[1:])
        options, notices = parse(argv)
        for notice in notices:
            print(notice)
        return launch(options)
    return outcome.exit_code


def console() -> NoReturn:
    """The command ``msrun``. It ends at once: taking torch apart would take longer than ending the job did."""
    code = main(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(code)
