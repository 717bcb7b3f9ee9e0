"""``python -m runformer checkpoint list|show|verify|prune``: looking after the checkpoints of a run."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path


def main(argv: Sequence[str]) -> int:
    """Run one of the commands; the exit code: 1 where ``verify`` finds damage.

    Raises:
        RunformerError: there are no checkpoints, or one cannot be read.
    """
    options = _parser().parse_args(argv)
    # Imported late: a wrong command line shows at once.
    from runformer.checkpoint import manage

    if options.command == "list":
        print(manage.table(options.path))
    elif options.command == "show":
        print(manage.description(options.path, every=options.tensors))
    elif options.command == "prune":
        print(manage.prune(options.path, options.keep, dry=options.dry_run))
    else:
        intact, text = manage.verify(options.path)
        print(text)
        return 0 if intact else 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runformer checkpoint", description="List, show, check and remove checkpoints of a run."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    texts = {
        "list": "all checkpoints of a run, with step, size and age",
        "show": "what one checkpoint holds",
        "verify": "compare every byte with what was written; exit code 1 if one differs",
        "prune": "remove all but the newest",
    }
    for name, text in texts.items():
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument("path", type=Path, help="an output folder, its checkpoint folder, or one checkpoint in it")
        if name == "show":
            command.add_argument("--tensors", action="store_true", help="every tensor by name")
        if name == "prune":
            command.add_argument("--keep", type=int, required=True, metavar="N", help="how many stay")
            command.add_argument("--dry_run", action="store_true", help="only say what would be removed")
    return parser
