"""Front door: MindFormers' script of that name. See ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from runformer.cli.original_preprocess import alpaca_converter

if __name__ == "__main__":
    sys.exit(alpaca_converter(sys.argv[1:]))
