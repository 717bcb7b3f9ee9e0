"""Front door: MindFormers' script of that name. See ``--help``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from runformer.cli.original_preprocess import preprocess_indexed_dataset

if __name__ == "__main__":
    sys.exit(preprocess_indexed_dataset(sys.argv[1:]))
