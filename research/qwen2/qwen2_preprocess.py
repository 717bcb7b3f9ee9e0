"""Front door: MindFormers' script of that name. See ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from runformer.cli.original_preprocess import qwen2_preprocess

if __name__ == "__main__":
    sys.exit(qwen2_preprocess(sys.argv[1:]))
