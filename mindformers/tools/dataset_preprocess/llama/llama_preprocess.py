"""Front door: MindFormers' script of that name. See ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[4]))

from runformer.cli.original_preprocess import llama_preprocess

if __name__ == "__main__":
    sys.exit(llama_preprocess(sys.argv[1:]))
