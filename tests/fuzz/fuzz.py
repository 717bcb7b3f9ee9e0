"""Feeds a reader with changed files until it does something that it should not.

    pip install 'runformer[fuzz]'
    python tests/fuzz/fuzz.py mindrecord_file --seconds 60 --corpus /tmp/corpus

What an input led to is printed, and the input is kept in the folder of the corpus (``TARGET-crash-…``).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["runformer"]):
    from targets import TARGETS, words


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=["all", *TARGETS])
    parser.add_argument("--seconds", type=int, default=60, help="of each target (default 60)")
    parser.add_argument("--corpus", type=Path, required=True, metavar="DIR", help="where what is found is kept")
    options = parser.parse_args()
    if options.target == "all":
        return sum(_in_a_process(name, options) for name in TARGETS)
    _fuzz(options)
    return 0


def _in_a_process(name: str, options: argparse.Namespace) -> int:
    """libFuzzer ends the process that it runs in. 1 where it found something."""
    print(f"== {name}", flush=True)
    command = [sys.executable, __file__, name, "--seconds", str(options.seconds), "--corpus", str(options.corpus)]
    return int(subprocess.run(command, check=False).returncode != 0)


def _fuzz(options: argparse.Namespace) -> None:
    target, seeds = TARGETS[options.target]
    corpus = options.corpus / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds()):
        target(seed)
        (corpus / f"seed-{number}").write_bytes(seed)
    dictionary = options.corpus / f"{options.target}.dict"
    dictionary.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words()))
    limits = [f"-max_total_time={options.seconds}", "-timeout=20", "-rss_limit_mb=2048", "-max_len=65536"]
    kept = [f"-dict={dictionary}", f"-artifact_prefix={options.corpus}/{options.target}-", "-print_final_stats=1"]
    atheris.Setup([sys.argv[0], str(corpus), *limits, *kept], target)
    atheris.Fuzz()


if __name__ == "__main__":
    sys.exit(main())
