"""``python -m runformer COMMAND …``: the commands besides running a task."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence

from runformer.cli import checkpoint, config, convert, data, doctor, plan, preprocess
from runformer.cli.report import reporting_errors

_COMMANDS: Mapping[str, Callable[[Sequence[str]], int | None]] = {
    "checkpoint": checkpoint.main,
    "config": config.main,
    "convert": convert.main,
    "data": data.main,
    "doctor": doctor.main,
    "plan": plan.main,
    "preprocess": preprocess.main,
}


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m runformer",
        description="Prepare data for tasks and look into it, explain their keys, plan them, convert weights, look "
        "after checkpoints, and look over this machine. "
        "Tasks themselves are run by: python run_mindformer.py --config X.yaml …",
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.add_argument("command", choices=_COMMANDS, help="COMMAND --help tells more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    with reporting_errors(debug=options.debug) as outcome:
        outcome.exit_code = _COMMANDS[options.command](options.arguments) or 0
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
