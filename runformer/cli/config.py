"""``python -m runformer config``: what the keys of a task file mean."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def main(argv: Sequence[str]) -> None:
    """Run the command; the explanation is printed.

    Raises:
        UsageError: there is no such key.
    """
    options = _parser().parse_args(argv)
    from runformer.config.explain import explain, page

    if options.page:
        print(page(), end="")
    else:
        print("\n\n".join(explain(path) for path in options.explain))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m runformer config", description="Explain the keys of a task file: meaning, values, effect."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--explain", nargs="+", metavar="KEY", help="such as runner_config.epochs; a section is told with its keys"
    )
    what.add_argument("--page", action="store_true", help="print the page docs/configuration.md")
    return parser
