"""``python -m runformer COMMAND …``: the commands besides running a task."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from runformer.cli import config, preprocess
from runformer.cli.report import reporting_errors

_COMMANDS = {"config": config.main, "preprocess": preprocess.main}


def main(argv: Sequence[str]) -> int:
    """Run one command and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m runformer",
        description="Prepare data for tasks, and explain their keys. "
        "Tasks themselves are run by: python run_mindformer.py --config X.yaml …",
    )
    parser.add_argument("--debug", action="store_true", help="show where an error comes from")
    parser.add_argument("command", choices=_COMMANDS, help="COMMAND --help tells more")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    with reporting_errors(debug=options.debug) as outcome:
        _COMMANDS[options.command](options.arguments)
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
